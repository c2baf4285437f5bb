"""``renorm.accumulate``: micro-batches are one step of the statistics."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import renorm
from renorm import limits
from renorm.nn import BatchRenorm
from support.tolerance import assert_close

C = 4


def layer(**settings: Any) -> Any:
    """A layer in the middle of its ramps, with statistics of its own."""
    settings = {"momentum": 0.2, "limits": limits.over(200)} | settings
    made = BatchRenorm(C, **settings)
    with torch.no_grad():
        for t in made.parameters():
            t.normal_()
        assert made.running_mean is not None
        assert made.running_var is not None
        assert made.num_batches_tracked is not None
        made.running_mean.normal_()
        made.running_var.uniform_(0.5, 2)
        made.num_batches_tracked.fill_(30)
    return made


def batch(dtype: torch.dtype = torch.float32, offset: float = 0.0) -> Tensor:
    x = torch.randn(9, C, 3, 3, dtype=torch.float64) + torch.arange(9.0).view(-1, 1, 1, 1)
    return (x + offset).to(dtype)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


SPLITS = {"even": [3, 3, 3], "uneven": [5, 1, 3], "with an empty one": [4, 0, 5], "one": [9]}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("kernel", [None, "aten", "composite"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_statistics_step_as_for_the_whole_batch(
    split: list[int], kernel: str | None, dtype: torch.dtype
) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    norm = layer(kernel=kernel, dtype=wide)
    whole, x = copy.deepcopy(norm), batch(dtype)
    whole(x)
    with renorm.accumulate(norm):
        for part in x.split(split):
            norm(part)
    for name in ("running_mean", "running_var"):
        assert_close(name, getattr(norm, name), getattr(whole, name).double(), wide)
    assert int(norm.num_batches_tracked) == 31


def test_masked_values_are_pooled_by_their_number() -> None:
    norm, x = layer(), batch()
    mask = torch.rand(9, 3, 3) < 0.6
    whole = copy.deepcopy(norm)
    whole(x, mask)
    with renorm.accumulate(norm):
        for part, real in zip(x.split(2), mask.split(2), strict=True):
            norm(part, real)
    for name in ("running_mean", "running_var"):
        assert_close(name, getattr(norm, name), getattr(whole, name).double(), x.dtype)


def test_variance_survives_a_large_offset() -> None:
    norm = BatchRenorm(C, momentum=1.0)
    x = batch(offset=1e4)
    with renorm.accumulate(norm):
        for part in x.split(3):
            norm(part)
    true = x.double().var((0, 2, 3), correction=0)
    # each mean is rounded by up to 2^-24 * 1e4 = 6e-4; they are up to 4 apart, the variance is 7
    torch.testing.assert_close(norm.running_var, true.float(), rtol=2 * 4 * 6e-4 / 7, atol=0)


def test_outputs_and_gradients_are_those_of_the_reference_before() -> None:
    norm = layer()
    with renorm.accumulate(norm):
        for part in batch().split(3):
            alone = layer()
            alone.load_state_dict(norm.state_dict())
            outcomes = []
            for each in (norm, alone):
                each.zero_grad()
                x = part.clone().requires_grad_()
                y = each(x)
                torch.manual_seed(1)
                y.backward(torch.randn_like(y))
                outcomes.append((y, x.grad, each.weight.grad, each.bias.grad))
            assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_cumulative_average_counts_one_step() -> None:
    norm = BatchRenorm(C, momentum=None)
    first, second = batch(), batch()
    norm(first)
    with renorm.accumulate(norm):
        for part in second.split(3):
            norm(part)
    true = torch.stack([first.mean((0, 2, 3)), second.mean((0, 2, 3))]).mean(0)
    torch.testing.assert_close(norm.running_mean, true)


def test_microbatches_of_one_forward_step_as_without() -> None:
    norm, x = layer(microbatch=2), batch()
    plain = copy.deepcopy(norm)
    plain(x)
    with renorm.accumulate(norm):
        norm(x)
    for name in ("running_mean", "running_var"):
        assert_close(name, getattr(norm, name), getattr(plain, name).double(), x.dtype)


def test_non_finite_micro_batch_is_left_out() -> None:
    norm, x = layer(), batch()
    finite = copy.deepcopy(norm)
    finite(x[:6])
    bad = x[6:].clone()
    bad[0, 0, 0, 0] = float("inf")
    with renorm.accumulate(norm):
        for part in (x[:3], bad, x[3:6]):
            norm(part)
    torch.testing.assert_close(norm.running_mean, finite.running_mean)
    torch.testing.assert_close(norm.running_var, finite.running_var)


def only_bad(norm: Any) -> None:
    norm(torch.full((2, C, 3, 3), float("nan")))


def single_value(norm: Any) -> None:
    norm(torch.randn(1, C, 1, 1))


def in_eval(norm: Any) -> None:
    norm.eval()(batch())


def while_frozen(norm: Any) -> None:
    renorm.freeze(norm)(batch())


def untracked(norm: Any) -> None:
    norm.track_running_stats = False
    norm(batch())


def nothing(norm: Any) -> None:
    pass


@pytest.mark.parametrize(
    "forward", [only_bad, single_value, in_eval, while_frozen, untracked, nothing]
)
def test_what_counts_for_nothing_moves_nothing(forward: Callable[[Any], None]) -> None:
    norm = layer(single="running")
    before = state(norm)
    with renorm.accumulate(norm):
        forward(norm)
    assert same(state(norm), before)


def test_nested_contexts_are_one_step() -> None:
    norm, x = layer(), batch()
    flat = copy.deepcopy(norm)
    with renorm.accumulate(flat):
        for part in x.split(3):
            flat(part)
    before = state(norm)
    with renorm.accumulate(norm):
        norm(x[:3])
        with renorm.accumulate(norm):
            norm(x[3:6])
        assert same(state(norm), before)
        norm(x[6:])
    assert same(state(norm), state(flat))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_context_moves_nothing(error: type[BaseException]) -> None:
    norm = layer()
    before = state(norm)

    def interrupted() -> None:
        with renorm.accumulate(norm):
            norm(batch())
            raise error

    with pytest.raises(error):
        interrupted()
    assert same(state(norm), before)
    plain = copy.deepcopy(norm)
    x = batch()
    assert torch.equal(norm(x), plain(x))  # an ordinary layer again
    assert same(state(norm), state(plain))


def test_inner_failure_keeps_the_forwards_that_ended() -> None:
    norm, x = layer(), batch()
    flat = copy.deepcopy(norm)
    with renorm.accumulate(flat):
        flat(x[:3])
        flat(x[3:])
    with renorm.accumulate(norm):
        try:
            with renorm.accumulate(norm):
                norm(x[:3])
                raise RuntimeError
        except RuntimeError:
            pass
        norm(x[3:])
    assert same(state(norm), state(flat))


def test_copy_made_inside_is_an_ordinary_layer() -> None:
    norm = layer()
    with renorm.accumulate(norm):
        norm(batch())
        made = copy.deepcopy(norm)
        before = state(made)
        made(batch())
        assert not same(state(made), before)


def test_all_layers_step_together() -> None:
    model = nn.Sequential(nn.Conv2d(C, 6, 1), BatchRenorm(6), nn.ReLU(), BatchRenorm(6, eps=1e-2))
    model.append(BatchRenorm(6, momentum=None)).append(BatchRenorm(6, momentum=0.5))
    singly = copy.deepcopy(model)
    inputs: dict[int, list[Tensor]] = {i: [] for i in (1, 3, 4, 5)}
    for i, seen in inputs.items():
        model[i].register_forward_hook(lambda _, args, __, seen=seen: seen.append(args[0]))
    with renorm.accumulate(model):
        for part in batch().split(3):
            model(part)
    for i, seen in inputs.items():
        norm = singly[i]
        norm(torch.cat(seen).detach())
        for name, t in norm.state_dict().items():
            torch.testing.assert_close(model[i].state_dict()[name], t)


def test_repeated_forward_of_a_checkpoint_is_pooled_once() -> None:
    for reentrant in (False, True):
        norm, x = layer(), batch()
        plain = copy.deepcopy(norm)
        for each, run in ((norm, True), (plain, False)):
            with renorm.accumulate(each):
                for part in x.split(3):
                    t = part.clone().requires_grad_()
                    y = checkpoint(each, t, use_reentrant=reentrant) if run else each(t)
                    torch.manual_seed(1)
                    y.backward(torch.randn_like(y))
        assert same(state(norm), state(plain))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_without_a_graph_break(backend: str) -> None:
    norm = layer()
    plain = copy.deepcopy(norm)
    compiled: Any = torch.compile(norm, backend=backend, fullgraph=True)
    for _ in range(2):
        x = batch()
        for each, run in ((norm, compiled), (plain, plain)):
            with renorm.accumulate(each):
                for part in x.split(3):
                    torch.manual_seed(1)
                    run(part.clone().requires_grad_()).backward(torch.randn_like(part))
    for name, t in plain.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[name], t)


def test_low_precision_statistics_keep_their_dtype() -> None:
    norm = layer().bfloat16()
    with renorm.accumulate(norm):
        norm(batch(torch.bfloat16))
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.bfloat16
    assert int(norm.num_batches_tracked) == 31


def test_lazy_layer_takes_part_from_its_first_forward() -> None:
    norm, x = renorm.LazyBatchRenorm2d(momentum=1.0), batch()
    with renorm.accumulate(norm):
        for part in x.split(3):
            norm(part)
    torch.testing.assert_close(norm.running_mean, x.mean((0, 2, 3)))


def test_model_without_batch_renorm_is_refused() -> None:
    refused = pytest.raises(renorm.ArgumentError, match="no batch renorm layer")
    with refused, renorm.accumulate(nn.Linear(2, 2)):
        pass


def test_meta_device() -> None:
    norm = BatchRenorm(C, device="meta")
    with renorm.accumulate(norm):
        norm(torch.empty(2, C, 3, device="meta"))
