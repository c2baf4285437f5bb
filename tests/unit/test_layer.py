"""Life of a layer: construction, modes, statistics, odd batches, meta device, torch's own tools."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import renorm
from renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, LazyBatchRenorm2d, limits
from renorm.errors import ArgumentError
from renorm.nn import BatchRenorm

LAYERS = [(BatchRenorm1d, (6, 4)), (BatchRenorm1d, (3, 4, 5)), (BatchRenorm2d, (2, 4, 3, 3)),
          (BatchRenorm3d, (2, 4, 2, 3, 3)), (BatchRenorm, (2, 4, 2, 2, 2, 2))]  # fmt: skip
layers = pytest.mark.parametrize(("cls", "shape"), LAYERS)
open_limits = limits.fixed(2, 2)


@layers
def test_takes_every_rank_its_batch_norm_takes(cls: type, shape: tuple[int, ...]) -> None:
    assert cls(4)(torch.randn(shape)).shape == shape


@layers
def test_is_a_batch_norm(cls: type[nn.Module], shape: tuple[int, ...]) -> None:
    layer = cls(4)
    assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
    if cls is not BatchRenorm:
        assert isinstance(layer, getattr(nn, f"BatchNorm{len(shape) - 2 or 1}d"))


@pytest.mark.parametrize(
    ("cls", "shape", "message"),
    [
        (BatchRenorm1d, (2, 4, 3, 3), "BatchRenorm1d takes 2-D or 3-D input .* got 4-D"),
        (BatchRenorm2d, (2, 4), r"BatchRenorm2d takes 4-D input .* got 2-D of shape \(2, 4\)"),
        (BatchRenorm3d, (2, 4, 3, 3), "BatchRenorm3d takes 5-D input"),
        (BatchRenorm2d, (2, 3, 5, 5), r"BatchRenorm2d\(4\) takes input with 4 channels"),
        (BatchRenorm, (4,), r"BatchRenorm\(4\) takes input with 4 channels"),
    ],
)
def test_wrong_shapes_are_refused_in_both_modes(
    cls: type[nn.Module], shape: tuple[int, ...], message: str
) -> None:
    for mode in (True, False):
        with pytest.raises(ArgumentError, match=message):
            cls(4).train(mode)(torch.randn(shape))


def test_keyword_input_works_as_for_batch_norm() -> None:
    assert BatchRenorm1d(4)(input=torch.randn(5, 4)).shape == (5, 4)


def test_affine_false_registers_no_parameters() -> None:
    assert list(BatchRenorm2d(4, affine=False).parameters()) == []


def test_bias_false_registers_weight_alone() -> None:
    layer = BatchRenorm2d(4, bias=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


def test_repr_shows_every_setting() -> None:
    layer = BatchRenorm1d(
        4, limits=limits.fixed(3, 5), microbatch=2, single="running", kernel="composite"
    )
    shared = nn.BatchNorm1d(4, momentum=0.01).extra_repr()
    assert repr(layer) == (
        f"BatchRenorm1d({shared}, limits=r_max 3, d_max 5, microbatch=2, single='running', "
        "kernel='composite')"
    )
    assert "frozen" in repr(renorm.freeze(layer))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.5}, "from 0 to 1, got 1.5"),
        ({"momentum": -0.1}, "from 0 to 1, got -0.1"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"microbatch": 0}, "at least 1, got 0"),
        ({"microbatch": 2.5}, "at least 1, got 2.5"),
        ({"single": "skip"}, "'raise' or 'running', got 'skip'"),
        ({"kernel": "fast"}, "no kernel 'fast'; there are cpu, cuda, aten, composite"),
        ({"limits": (3, 5)}, r"returns \(r_max, d_max\), got \(3, 5\)"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    for cls in (BatchRenorm1d, renorm.LazyBatchRenorm1d):
        with pytest.raises(ArgumentError, match=message):
            BatchRenorm1d(4, **options) if cls is BatchRenorm1d else cls(**options)


def test_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="rmax"):
        BatchRenorm1d(4, rmax=3)  # type: ignore[call-arg]


def test_momentum_none_is_the_plain_average_over_batches() -> None:
    layer = BatchRenorm1d(3, momentum=None, limits=limits.batch_norm())
    batches = [torch.randn(50, 3) * 2 + 1 for _ in range(7)]
    for batch in batches:
        layer(batch)
    sigma = torch.stack([b.var(0, correction=0).add(1e-5).sqrt() for b in batches]).mean(0)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    torch.testing.assert_close(
        layer.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0)
    )
    torch.testing.assert_close(layer.running_var, sigma.square() - 1e-5)


def test_update_bn_of_torch_averages_over_the_loader() -> None:
    net = nn.Sequential(BatchRenorm1d(3, limits=limits.over(10)), nn.Linear(3, 2))
    batches = [torch.randn(20, 3) + i for i in range(4)]
    for batch in batches:
        net(batch)
    update_bn(batches, net)
    norm = net[0]
    assert isinstance(norm, BatchRenorm1d)
    assert norm.momentum == 0.01
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.stack(batches).mean((0, 1)))


def test_no_running_statistics_is_batch_norm_in_both_modes() -> None:
    ours = BatchRenorm1d(3, track_running_stats=False, limits=open_limits)
    theirs = nn.BatchNorm1d(3, track_running_stats=False)
    x = torch.randn(8, 3)
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), theirs.train(mode)(x))
    assert list(ours.state_dict()) == ["weight", "bias"]


def test_tracking_switched_off_later_reads_and_does_not_write() -> None:
    """What Lightning's finetuning callback does to freeze statistics."""
    layer = BatchRenorm1d(3, limits=open_limits)
    layer(torch.randn(8, 3))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    reading = copy.deepcopy(layer)
    layer.track_running_stats = False
    x = torch.randn(8, 3) + 1
    assert torch.equal(layer(x), reading(x))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_no_grad_training_forward_updates_as_batch_norm_does() -> None:
    layer = BatchRenorm1d(3)
    with torch.no_grad():
        layer(torch.randn(8, 3))
    with torch.inference_mode():
        layer(torch.randn(8, 3))
    assert int(layer.num_batches_tracked) == 2  # type: ignore[arg-type]
    layer(torch.randn(8, 3)).backward(torch.randn(8, 3))
    assert layer.weight.grad is not None


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)], ids=str)
def test_empty_batch_passes_and_counts_for_nothing(shape: tuple[int, ...]) -> None:
    layer = BatchRenorm2d(4)
    layer(torch.randn(2, 4, 3, 3))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    y.backward(torch.randn(shape))
    assert y.shape == shape
    assert torch.equal(layer.weight.grad, torch.zeros(4))  # type: ignore[arg-type]
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    half = BatchRenorm2d(4)(torch.randn(shape, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16


SINGLES = [((1, 4), None), ((1, 4, 1), None), ((5, 4), 2), ((3, 4, 1), 1)]


@pytest.mark.parametrize(("shape", "microbatch"), SINGLES, ids=str)
def test_one_value_per_channel_raises_and_changes_nothing(
    shape: tuple[int, ...], microbatch: int | None
) -> None:
    layer = BatchRenorm1d(4, microbatch=microbatch)
    with pytest.raises(ArgumentError, match="One value per channel has no spread"):
        layer(torch.randn(shape))
    assert int(layer.num_batches_tracked) == 0  # type: ignore[arg-type]
    assert layer.eval()(torch.randn(shape)).shape == shape


@pytest.mark.parametrize(("shape", "microbatch"), SINGLES, ids=str)
def test_one_value_per_channel_by_running_statistics(
    shape: tuple[int, ...], microbatch: int | None
) -> None:
    layer = BatchRenorm1d(4, microbatch=microbatch, single="running", limits=open_limits)
    with torch.no_grad():
        layer(torch.randn(6, 4) * 2 + 1)
    inference = copy.deepcopy(layer).eval()
    last = {None: 0, 2: 4, 1: 0}[microbatch]  # where the groups of one begin
    x = torch.randn(shape, requires_grad=True)
    dy = torch.randn(shape)
    y, exact = layer(x)[last:], inference(x)[last:]
    torch.testing.assert_close(y, exact)
    ours = torch.autograd.grad(y, x, dy[last:])
    torch.testing.assert_close(ours, torch.autograd.grad(exact, x, dy[last:]))
    counted = int(layer.num_batches_tracked)  # type: ignore[arg-type]
    assert counted == {None: 1, 2: 2, 1: 0}[microbatch]  # single values never count
    if microbatch != 2:
        assert torch.equal(layer.running_var, inference.running_var)  # type: ignore[arg-type]


def test_mask_without_real_data_gives_zeros_and_counts_for_nothing() -> None:
    layer = BatchRenorm1d(4)
    x = torch.full((3, 4, 5), float("nan"), requires_grad=True)
    y = layer(x, torch.zeros(3, 5, dtype=torch.bool))
    y.backward(torch.randn(3, 4, 5))
    assert torch.equal(y, torch.zeros(3, 4, 5))
    assert torch.equal(x.grad, torch.zeros(3, 4, 5))  # type: ignore[arg-type]
    assert int(layer.num_batches_tracked) == 0  # type: ignore[arg-type]


def test_mask_is_obeyed_in_eval_and_frozen_too() -> None:
    layer = BatchRenorm1d(4, limits=open_limits)
    layer(torch.randn(5, 4))
    x, mask = torch.randn(3, 4, 5), torch.rand(3, 5) < 0.5
    expected = layer.eval()(x) * mask.unsqueeze(1)
    assert torch.equal(layer(x, mask), expected)
    assert torch.equal(renorm.freeze(layer).train()(x, mask), expected)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(3, 5), torch.ones(3, 4, 5, dtype=torch.bool), torch.ones(5, 3, dtype=torch.bool)],
    ids=["float", "with channels", "transposed"],
)
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_wrong_masks_are_refused(mask: torch.Tensor, mode: bool) -> None:
    with pytest.raises(ArgumentError, match=r"mask must be bool of shape .* = \(3, 5\)"):
        BatchRenorm1d(4).train(mode)(torch.randn(3, 4, 5), mask)


def test_microbatch_is_each_group_against_the_same_reference() -> None:
    whole = BatchRenorm1d(3, microbatch=4, limits=open_limits, momentum=0.2)
    whole(torch.randn(8, 3) + 1)
    alone = copy.deepcopy(whole)
    x = torch.randn(10, 3)
    parts = []
    for group in x.split(4):
        one = copy.deepcopy(alone)
        one.microbatch = None
        parts.append(one(group))
    torch.testing.assert_close(whole(x), torch.cat(parts))
    assert int(whole.num_batches_tracked) == 2  # type: ignore[arg-type]


def test_frozen_layer_is_inference_in_training_and_learns_its_affine() -> None:
    net = nn.Sequential(BatchRenorm1d(3, limits=open_limits), nn.Linear(3, 2))
    net(torch.randn(8, 3))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, dy = torch.randn(8, 3), torch.randn(8, 2)
    expected = net.eval()(x)
    assert renorm.freeze(net).train() is net
    y = net(x)
    y.backward(dy)
    assert torch.equal(y, expected)
    assert net[0].weight.grad is not None
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert copy.deepcopy(net)[0].frozen
    renorm.unfreeze(net)(x)
    assert int(net[0].num_batches_tracked) == 2  # type: ignore[arg-type]


def test_freezing_what_cannot_be_frozen_is_refused() -> None:
    with pytest.raises(ArgumentError, match="Sequential has no batch renorm"):
        renorm.freeze(nn.Sequential(nn.BatchNorm1d(3)))
    net = nn.Sequential(BatchRenorm1d(3), BatchRenorm1d(3, track_running_stats=False))
    with pytest.raises(ArgumentError, match="cannot be frozen: 1"):
        renorm.freeze(net)
    assert not net[0].frozen


def test_meta_device_and_to_empty() -> None:
    layer = BatchRenorm2d(4, device="meta")
    assert layer(torch.randn(2, 4, 3, 3, device="meta")).shape == (2, 4, 3, 3)
    layer.to_empty(device="cpu").reset_parameters()
    fresh = BatchRenorm2d(4)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in layer.state_dict().items())
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(layer(x), fresh(x))


def test_lazy_layer_becomes_the_plain_one() -> None:
    layer = LazyBatchRenorm2d(limits=open_limits, microbatch=2, momentum=None, bias=False)
    assert repr(layer).startswith("LazyBatchRenorm2d(0, ")
    layer(torch.randn(4, 7, 3, 3))
    assert type(layer) is BatchRenorm2d
    assert layer.num_features == 7
    assert (layer.limits, layer.microbatch, layer.momentum) == (open_limits, 2, None)
    assert layer.bias is None
    renorm.LazyBatchRenorm1d()(torch.randn(3, 4, 5), mask=torch.ones(3, 5, dtype=torch.bool))


def test_lazy_layer_loads_a_batch_norm_checkpoint() -> None:
    theirs = nn.BatchNorm2d(5)
    theirs(torch.randn(4, 5, 3, 3))
    layer = LazyBatchRenorm2d()
    layer.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 3, 3)
    assert torch.equal(layer.eval()(x), theirs.eval()(x))


def test_checkpoint_of_before_num_batches_tracked_loads() -> None:
    old = {k: v for k, v in nn.BatchNorm1d(3).state_dict().items() if "num_batches" not in k}
    BatchRenorm1d(3).load_state_dict(old, strict=True)


def test_missing_step_counter_reads_as_zero() -> None:
    layer = BatchRenorm1d(3, limits=limits.over(10))
    layer.num_batches_tracked = None
    plain = nn.BatchNorm1d(3)
    x = torch.randn(8, 3) + 2
    torch.testing.assert_close(layer(x), plain(x))


def test_restart_limits_starts_the_schedule_again() -> None:
    layer = BatchRenorm1d(3, limits=limits.over(10))
    layer.num_batches_tracked.fill_(500)  # type: ignore[union-attr]
    layer.restart_limits()
    assert layer.limits(layer.num_batches_tracked)[0] == 1
    with torch.inference_mode():
        made = BatchRenorm1d(3)
        made(torch.randn(4, 3))
    made.restart_limits()
    assert int(made.num_batches_tracked) == 0  # type: ignore[arg-type]


def test_statistics_never_leave_their_device_for_the_host() -> None:
    """No value is read: a meta tensor, which has none, goes through every training path."""
    x = torch.randn(6, 3, 4, device="meta", requires_grad=True)
    mask = torch.ones(6, 4, dtype=torch.bool, device="meta")
    variants: list[dict[str, Any]] = [
        {}, {"momentum": None}, {"microbatch": 4}, {"limits": limits.crossq()}
    ]  # fmt: skip
    for options in variants:
        layer = BatchRenorm1d(3, device="meta", **options)
        for arguments in ((x,), (x, mask)):
            y = layer(*arguments)
            y.backward(torch.empty_like(y))
