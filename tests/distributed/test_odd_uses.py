"""What processes do differently, and what people do to a model that shares its statistics."""

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn
from torch.utils.flop_counter import FlopCounterMode

import renorm
from renorm.distributed import settle, sync_running, unsync_running
from renorm.nn import BatchRenorm
from support.ranks import Ranks


def net(**settings: Any) -> Any:
    torch.manual_seed(0)
    layers = [BatchRenorm(4, **settings), nn.ReLU(), nn.Conv2d(4, 5, 3), BatchRenorm(5, **settings)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers)


def x(rank: int, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(4, 3, 8, 8, generator=generator) + rank


def joined(step: int = 0) -> Tensor:
    return torch.cat([x(rank, step) for rank in range(2)])


def mean_of(model: Any) -> Tensor:
    return settle(model)[1].running_mean.clone()


def backward(y: Tensor) -> None:
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(5)))


def mask_of(batch: Tensor) -> Tensor:
    return torch.ones(len(batch), *batch.shape[2:], dtype=torch.bool)


def one_is_masked(rank: int, group: Any) -> None:
    layer = BatchRenorm(3, sync="batch", process_group=group)
    t = x(rank).requires_grad_()
    backward(layer(t, mask_of(t) if rank == 0 else None))
    alone, whole = BatchRenorm(3), joined().requires_grad_()
    y = alone(whole)
    cotangent = torch.randn(t.shape, generator=torch.Generator().manual_seed(5))
    y.backward(torch.cat([cotangent, cotangent]))
    assert whole.grad is not None
    torch.testing.assert_close(t.grad, whole.grad[4 * rank : 4 * rank + 4], rtol=1e-5, atol=1e-6)


def other_kernels(rank: int, group: Any) -> None:
    model = net(sync="batch", process_group=group, kernel=("aten", "composite")[rank])
    backward(model(x(rank)))


def one_counts_operations(rank: int, group: Any) -> None:
    model = net(sync="batch", process_group=group)
    counter = FlopCounterMode(display=False) if rank == 0 else contextlib.nullcontext()
    with counter:
        backward(model(x(rank)))


def one_differentiates_twice(rank: int, group: Any) -> None:
    model, t = net(sync="batch", process_group=group), x(rank).requires_grad_()
    y = model(t)
    torch.autograd.grad(y, t, torch.ones_like(y), create_graph=rank == 0)


def other_dtypes(rank: int, group: Any) -> None:
    layer = BatchRenorm(3, sync="batch", process_group=group)
    backward(layer(x(rank).requires_grad_().to((torch.float32, torch.float64)[rank])))


def wide_parameters(rank: int, group: Any) -> None:
    layer = BatchRenorm(3, sync="batch", process_group=group, dtype=torch.float64)
    layer.float().bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    backward(layer(x(rank)))


BATCH = [one_is_masked, other_kernels, one_counts_operations, one_differentiates_twice]


@pytest.mark.parametrize("use", [*BATCH, other_dtypes, wide_parameters])
def test_joint_batches_need_not_be_computed_alike(ranks: Ranks, use: Callable[..., None]) -> None:
    ranks.run(use)


def scheduled(rank: int, group: Any, reads: bool) -> tuple[Tensor, Tensor]:
    model, plain = sync_running(net(momentum=0.5), group), net(momentum=0.5)
    for step, momentum in enumerate((0.5, 0.1, 0.01)):
        for layer in (*model, *plain):
            if isinstance(layer, BatchRenorm):
                layer.momentum = momentum
        model(x(rank, step))
        plain(joined(step))
        if reads and rank == 0:
            renorm.summary(model)
    return mean_of(model), plain[1].running_mean


@pytest.mark.parametrize("reads", [False, True])
def test_each_step_has_the_momentum_of_its_forward(ranks: Ranks, reads: bool) -> None:
    found = ranks.run(scheduled, reads)
    for mean, exact in found:
        torch.testing.assert_close(mean, exact)
        assert torch.equal(mean, found[0][0])


def averaged(rank: int, group: Any) -> tuple[Tensor, Tensor]:
    model, plain = sync_running(net(), group), net()
    update_bn([x(rank, step) for step in range(3)], model)
    update_bn([joined(step) for step in range(3)], plain)
    return mean_of(model), plain[1].running_mean


def test_update_bn_averages_all_batches(ranks: Ranks) -> None:
    for mean, exact in ranks.run(averaged):
        torch.testing.assert_close(mean, exact)


def released(rank: int, group: Any, how: str) -> list[int]:
    model = sync_running(net(), group)
    if how == "unsync_running":
        unsync_running(model[1])
    elif how == "configure":
        model[1].configure()
    elif how == "replace":
        model[1] = BatchRenorm(4)
        sync_running(model, group)
    calls, all_reduce = [], dist.all_reduce
    dist.all_reduce = lambda *a, **k: (calls.append(1), all_reduce(*a, **k))[1]
    try:
        model(x(rank))
    finally:
        dist.all_reduce = all_reduce
    settle(model)
    steps = [int(model[i].num_batches_tracked) for i in (1, 4)]
    return [*steps, len(calls), len(model._forward_hooks)]


@pytest.mark.parametrize("how", ["unsync_running", "configure", "replace"])
def test_layer_may_leave_its_exchange(ranks: Ranks, how: str) -> None:
    for found in ranks.run(released, how):
        assert found == [1, 1, 1, 1]


def moved_nowhere(rank: int, group: Any, how: str) -> tuple[Tensor, int]:
    model = sync_running(net(momentum=0.1), group)
    ddp = DistributedDataParallel(model, process_group=group)
    for step in range(3):
        backward(ddp(x(rank, step)))
        if rank == 1 and how == "to":
            model.to("cpu")
        if rank == 1 and how == "calibrate":
            with contextlib.suppress(ZeroDivisionError):
                renorm.calibrate(model, (1 / 0 for _ in range(1)))
    return mean_of(model), int(model[1].num_batches_tracked)


@pytest.mark.parametrize("how", ["to", "calibrate"])
def test_nothing_done_to_the_model_loses_no_step(ranks: Ranks, how: str) -> None:
    (mean, steps), (other, other_steps) = ranks.run(moved_nowhere, how)
    assert steps == other_steps == 3
    assert torch.equal(mean, other)


def table(rank: int, group: Any, sync: Any) -> None:
    values = [(1.0, 0.0)] * 10
    model = net(sync=sync, process_group=group, limits=lambda step: values[step])
    if sync == "running":
        sync_running(model, group)
    model(x(rank))


@pytest.mark.parametrize("sync", ["batch", "running"])
def test_limits_are_asked_at_steps_that_come(ranks: Ranks, sync: str) -> None:
    ranks.run(table, sync)


def interrupted(rank: int, group: Any, error: type[BaseException]) -> Any:
    model, plain = sync_running(net(momentum=0.3), group), net(momentum=0.3)

    def fail(*_: Any) -> None:
        raise error

    for step in range(4):
        hook = model[2].register_forward_pre_hook(fail) if step == 1 else None
        with contextlib.suppress(error):
            model(x(rank, step))
        if hook is not None:
            hook.remove()
        else:
            plain(joined(step))
    steps = [int(settle(model)[i].num_batches_tracked) for i in (1, 4)]
    return model[1].running_mean, plain[1].running_mean, steps


@pytest.mark.filterwarnings("ignore:.*always_call")
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_forward_that_did_not_end_counts_for_nothing(
    ranks: Ranks, error: type[BaseException]
) -> None:
    for mean, exact, steps in ranks.run(interrupted, error):
        torch.testing.assert_close(mean, exact)
        assert steps == [3, 3]


def called_with_buffers(rank: int, group: Any) -> tuple[int, int]:
    model = sync_running(net(), group)
    model(x(rank))
    own = {name: t.clone() for name, t in model.named_buffers()}
    torch.func.functional_call(model, own, (x(rank, 1),))
    settle(model)
    return int(model[1].num_batches_tracked), int(own["1.num_batches_tracked"])


def test_step_goes_to_the_buffers_of_its_forward(ranks: Ranks) -> None:
    assert ranks.run(called_with_buffers) == [(1, 1), (1, 1)]


class Recursive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = BatchRenorm(3)

    def forward(self, t: Tensor, depth: int = 1) -> Tensor:
        return self.norm(self(t, depth - 1) if depth else t)


def test_model_may_call_itself() -> None:
    model: Any = sync_running(Recursive())
    for step in range(2):
        model(x(0, step))
    assert int(model.norm.num_batches_tracked) == 2


def test_layer_may_be_copied_before_its_model() -> None:
    model = sync_running(net())
    layer, whole = copy.deepcopy([model[1], model])
    assert whole[1] is layer
    whole(x(0))
    assert int(layer.num_batches_tracked) == 1
    assert int(model[1].num_batches_tracked) == 0


def test_layer_by_itself_is_written_without_its_model() -> None:
    model: Any = sync_running(nn.Sequential(nn.Linear(300, 300), BatchRenorm(4)))
    written = pickle.dumps(model[1])
    assert len(written) < 4 * 300 * 300
    whole = pickle.loads(pickle.dumps(model))
    assert whole[1]._deferral is not None
    assert whole[1]._deferral.root is whole


def test_part_that_was_copied_is_freed() -> None:
    model: Any = sync_running(nn.Sequential(net(), nn.ReLU()))
    part = unsync_running(copy.deepcopy(model[0]))
    assert part[1].sync is None
    assert model[0][1].sync == "running"


def test_layer_may_leave_an_accumulation() -> None:
    model: Any = renorm.convert(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
    with renorm.accumulate(model):
        model(x(0))
        model[0].configure()
    assert int(model[0].num_batches_tracked) == 0
    assert int(model[1].num_batches_tracked) == 1
    with renorm.accumulate(model):
        model(x(0))
        renorm.to_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d
    assert vars(model[0]).keys() == vars(nn.BatchNorm2d(3)).keys()


def test_statistics_that_are_loaded_inside_drop_what_came_before() -> None:
    layer = BatchRenorm(3, momentum=1.0)
    state = copy.deepcopy(layer.state_dict())
    with renorm.accumulate(layer):
        layer(x(0))
        layer.load_state_dict(state)
        layer(x(1))
    torch.testing.assert_close(layer.running_mean, x(1).mean((0, 2, 3)))


def test_conversion_that_could_share_nothing_changes_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(renorm.ArgumentError, match="none of the 1 layers"):
        renorm.convert(model, sync="running")
    assert type(model[0]) is nn.BatchNorm2d
