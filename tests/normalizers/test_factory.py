"""Every normalizer by name: classes, options, marks, and what is refused."""

import inspect
import re
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import renorm
from renorm.cli.compare import compare
from renorm.errors import ArgumentError, RenormError
from renorm.nn import normalizers as layers
from renorm.nn.normalizers import Entry, block, normalizer, normalizers

NAMES = list(normalizers())
SHAPES = {0: (6, 8), 1: (6, 8, 7), 2: (6, 8, 5, 4), 3: (6, 8, 3, 4, 2)}
# layers that take statistics over positions, where there must be some
OVER_POSITIONS = {"instance_norm", "filter_response_norm", "evonorm_b0"}
BY_RANK = {
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "batch_renorm": (renorm.BatchRenorm1d, renorm.BatchRenorm2d, renorm.BatchRenorm3d),
    "cross_iteration": (
        renorm.CrossIterationBatchNorm1d,
        renorm.CrossIterationBatchNorm2d,
        renorm.CrossIterationBatchNorm3d,
    ),
}
CLASSES: dict[str, type[nn.Module]] = {
    "layer_norm": nn.GroupNorm,
    "instance_norm": nn.GroupNorm,
    "group_norm": nn.GroupNorm,
    "filter_response_norm": layers.FilterResponseNorm,
    "variance_norm": layers.VarianceNorm,
    "evonorm_b0": layers.EvoNormB0,
    "evonorm_s0": layers.EvoNormS0,
    "weight_norm": layers.WeightNorm,
    "scaled_weight_standardization": layers.ScaledWeightStandardization,
    "lp_batch_norm": layers.LpBatchNorm,
    "noisy_batch_norm": layers.NoisyBatchNorm,
    "none": nn.Identity,
}


def source(dims: int) -> Any:
    """A layer of 5 inputs and 8 outputs that leaves positions as they are."""
    torch.manual_seed(1)
    if dims == 0:
        return nn.Linear(5, 8, bias=False)
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](5, 8, 1, bias=False)


def taken(dims: int) -> Tensor:
    shape = list(SHAPES[dims])
    shape[1] = 5
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def settings(name: str) -> dict[str, Any]:
    """Groups that hold more than one channel."""
    return {"groups": 2} if "groups" in normalizers()[name].options else {}


@pytest.mark.parametrize(
    ("name", "dims"),
    [(name, dims) for name in NAMES for dims in SHAPES if dims or name not in OVER_POSITIONS],
)
def test_the_class_is_that_of_the_name_and_takes_inputs_of_the_rank(name: str, dims: int) -> None:
    wanted = BY_RANK[name][max(dims, 1) - 1] if name in BY_RANK else CLASSES[name]
    assert type(normalizer(name, 8, dims=dims, **settings(name))) is wanted
    net = block(source(dims), name, **settings(name))
    assert type(net[1]) is wanted
    y = net(taken(dims))
    assert y.shape == SHAPES[dims]
    y.backward(torch.randn_like(y))
    grads = [parameter.grad for parameter in net.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", NAMES)
def test_marks_are_what_the_layer_does(name: str) -> None:
    entry, net = normalizers()[name], block(source(2), name, **settings(name))
    x = taken(2)
    other = torch.cat([x[:1], 2 * x[1:] + 1])
    state = torch.get_rng_state()
    y = net(x)[:1]
    torch.set_rng_state(state)
    assert torch.allclose(net(other)[:1], y, atol=1e-6) is not entry.mixes
    assert getattr(net[1], "activates", False) is entry.activates
    assert len(net) == 3 - entry.activates
    assert entry.paired is any(hasattr(net[1], method) for method in ("pair", "attach"))


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_that_are_listed_are_those_of_the_layer(name: str) -> None:
    entry = normalizers()[name]
    plain, told = normalizer(name, 8), normalizer(name, 8, **entry.options)
    assert repr(plain) == repr(told)
    assert inspect.Parameter.empty not in entry.options.values()
    assert not {"num_features", "num_channels", "num_groups"} & set(entry.options)


def test_entries_say_what_they_are() -> None:
    table = renorm.normalizers()
    assert list(table) == NAMES == [entry.name for entry in table.values()]
    assert len(NAMES) == 15
    for entry in table.values():
        assert entry.about
        assert entry.name == "none" or re.search(r"(19|20)\d\d, arXiv \d{4}\.\d{5}$", entry.source)
        assert f"``{entry.name}``" in (renorm.normalizer.__doc__ or "")
        assert f"`{entry.name}`" in (compare.__doc__ or "")


def test_nothing_of_the_table_can_be_changed() -> None:
    table: Any = normalizers()
    entry: Any = table["lp_batch_norm"]
    with pytest.raises(TypeError):
        table["mine"] = entry
    with pytest.raises(TypeError):
        entry.options["p"] = 2
    with pytest.raises(FrozenInstanceError):
        entry.mixes = False
    assert isinstance(entry, Entry)


def test_options_reach_the_layer() -> None:
    layer: Any = normalizer("lp_batch_norm", 8, p=2, momentum=0.5)
    assert (layer.p, layer.momentum) == (2, 0.5)
    grouped: Any = normalizer("group_norm", 8, group_size=2, eps=0.5, affine=False)
    assert (grouped.num_groups, grouped.eps, grouped.weight) == (4, 0.5, None)
    assert normalizer("batch-norm", 8, dims=3, dtype=torch.float64).weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("evonorm", "Did you mean 'evonorm_s0' or 'evonorm_b0'"),
        ("groupnorm", "Did you mean 'group_norm'"),
        ("weight-standardization", "Did you mean 'scaled_weight_standardization'"),
        ("zzz", r"'zzz'\. There are"),
        (None, "no normalizer 'None'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_near_ones_and_all(name: Any, near: str) -> None:
    with pytest.raises(ArgumentError, match=near) as caught:
        normalizer(name, 8)
    assert str(caught.value).endswith(f"There are {', '.join(NAMES)}.")


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        (
            "group_norm",
            "group",
            r"'group'\. Did you mean 'groups'.* It has groups, group_size",
        ),
        ("evonorm_b0", "groups", r"'evonorm_b0' has no option 'groups'.* It has eps, momentum"),
        ("none", "eps", r"'none' has no option 'eps'\. It has none"),
    ],
)
def test_an_unknown_option_is_answered_with_those_there_are(
    name: str, option: str, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        normalizer(name, 8, **{option: 2})


@pytest.mark.parametrize("name", ["group_norm", "evonorm_s0"])
def test_groups_divide_the_channels_and_are_given_once(name: str) -> None:
    wrong: list[dict[str, Any]] = [{"groups": 5}, {"group_size": 5}, {"groups": 0}, {"groups": 2.0}]
    for options in wrong:
        with pytest.raises(ArgumentError, match=r"the 12 channels, got .* 1, 2, 3, 4, 6, 12\."):
            normalizer(name, 12, **options)
    with pytest.raises(ArgumentError, match=r"groups=2 and group_size=6\. Give one of them"):
        normalizer(name, 12, groups=2, group_size=6)
    with pytest.raises(ArgumentError, match="the 48 channels, got 32"):
        normalizer(name, 48)


@pytest.mark.parametrize("channels", [0, -1, 2.0, True, "8", None])
def test_channels_are_counted(channels: Any) -> None:
    with pytest.raises(ArgumentError, match="channels is a number of channels, at least 1, got"):
        normalizer("batch_norm", channels)


@pytest.mark.parametrize("dims", [-1, 4, 2.0, True, "2", None])
def test_dims_are_none_to_three(dims: Any) -> None:
    with pytest.raises(ArgumentError, match="dims counts the spatial dimensions of inputs, 0 to 3"):
        normalizer("batch_norm", 8, dims=dims)


def test_a_group_of_a_single_value_is_refused() -> None:
    for name, options in (("instance_norm", {}), ("group_norm", {"group_size": 1})):
        normalizer(name, 8, dims=1, **options)
        with pytest.raises(ArgumentError, match=f"{name} of 8 channels has a group of a single"):
            normalizer(name, 8, dims=0, **options)
    with pytest.raises(ArgumentError, match="layer_norm of 1 channels"):
        normalizer("layer_norm", 1, dims=0)


def test_layer_instance_and_group_norm_take_statistics_where_they_say() -> None:
    x = torch.randn(3, 8, 5, 4, dtype=torch.float64) * 3 + 1
    expected = {
        "layer_norm": F.layer_norm(x, x.shape[1:]),
        "instance_norm": F.instance_norm(x),
        "group_norm": F.layer_norm(x.view(3, 2, -1), (80,)).view_as(x),
    }
    for name, y in expected.items():
        layer = normalizer(name, 8, dtype=torch.float64, **settings(name))
        # both are sums of at most 160 terms in float64
        torch.testing.assert_close(layer(x), y, rtol=1e-12, atol=1e-12)
        assert {n: tuple(p.shape) for n, p in layer.named_parameters()} == {
            "weight": (8,), "bias": (8,),
        }  # fmt: skip


@pytest.mark.parametrize("name", ["weight_norm", "scaled_weight_standardization"])
def test_a_paired_layer_alone_asks_for_its_source(name: str) -> None:
    with pytest.raises(RenormError, match="Call pair"):
        normalizer(name, 8)(torch.randn(2, 8, 3, 3))


def test_a_block_takes_over_what_the_source_is() -> None:
    net = block(nn.Conv3d(5, 8, 1, dtype=torch.float64), "batch_norm", activation=nn.Tanh)
    assert [type(layer) for layer in net] == [nn.Conv3d, nn.BatchNorm3d, nn.Tanh]
    assert net[1].weight.dtype == torch.float64
    assert net[1].num_batches_tracked.dtype == torch.long
    assert len(block(nn.Linear(5, 8), "batch_norm", activation=None)) == 2
    transposed = block(nn.ConvTranspose1d(5, 8, 2), "layer_norm")
    assert transposed(torch.randn(2, 5, 4)).shape == (2, 8, 5)
    crossed: Any = block(nn.Linear(5, 8), "cross_iteration")
    assert crossed[1].source is crossed[0]
    alone: Any = block(nn.ConvTranspose1d(5, 8, 2), "cross_iteration", compensation="none")
    assert alone[1].source is None


def test_a_block_of_another_source_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"is an nn\.Linear or a convolution, got ReLU"):
        block(nn.ReLU(), "batch_norm")
    with pytest.raises(ArgumentError, match="a transposed convolution cannot be a source"):
        block(nn.ConvTranspose2d(5, 8, 1), "weight_norm")
