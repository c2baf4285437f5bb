"""``sync="running"``: own batches, common running statistics, one exchange a step."""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import renorm
from renorm import limits
from renorm.distributed import settle, sync_running, unsync_running
from renorm.nn import BatchRenorm
from support.ranks import Ranks

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SPLITS = [(3, 3), (5, 1), (6, 0), (2, 2, 2), (4, 0, 2), (1, 0, 2, 3)]
STEPS = 3


def net(depth: int = 2, width: int = 4, **settings: Any) -> Any:
    torch.manual_seed(1)
    settings = {"momentum": 0.2, "limits": limits.over(20), "single": "running"} | settings
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [
            nn.Conv2d(width if i else 2, width, 3, padding=1),
            BatchRenorm(width, **settings),
        ]
    return nn.Sequential(*layers)


def batches(examples: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    slope = torch.linspace(-1, 1, examples).view(-1, 1, 1, 1)  # no two ranks see the same
    return [torch.randn(examples, 2, 4, 4, generator=generator) + slope for _ in range(STEPS)]


def train(model: nn.Module, xs: list[Tensor]) -> list[Tensor]:
    """Forwards and backwards with random cotangents; the parameters stay as they are."""
    ys = []
    for x in xs:
        y = model(x)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)))
        ys.append(y.detach())
    return ys


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items() if n.endswith(STATISTICS)}


def part(xs: list[Tensor], rank: int, split: tuple[int, ...]) -> list[Tensor]:
    return [x[sum(split[:rank]) : sum(split[: rank + 1])] for x in xs]


@contextmanager
def collectives_counted() -> Any:
    """All-reduces of this process: the number of bytes of each, and whether it was awaited."""
    calls: list[tuple[int, bool]] = []
    all_reduce = dist.all_reduce

    def counted(t: Tensor, *args: Any, **options: Any) -> Any:
        calls.append((t.numel() * t.element_size(), not options.get("async_op", False)))
        return all_reduce(t, *args, **options)

    dist.all_reduce = counted
    try:
        yield calls
    finally:
        dist.all_reduce = all_reduce


def shared_run(rank: int, group: Any, split: tuple[int, ...]) -> Any:
    model = sync_running(net(), group)
    ys = train(model, part(batches(sum(split)), rank, split))
    return ys, statistics(model)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_statistics_are_those_of_the_joint_batch(ranks: Ranks, split: tuple[int, ...]) -> None:
    answers = ranks.run(shared_run, split, size=len(split))
    # in one process: the parts are micro-batches of one step
    model, expected = net(), []
    for x in batches(sum(split)):
        with renorm.accumulate(model):
            expected.append([model(each).detach() for each in x.split(split)])
    exact = statistics(model)
    for rank, (ys, found) in enumerate(answers):
        assert all(torch.equal(found[name], answers[0][1][name]) for name in found)
        for name, value in exact.items():
            torch.testing.assert_close(found[name], value)
        for y, each in zip(ys, expected, strict=True):
            torch.testing.assert_close(y, each[rank])


def counted_run(rank: int, group: Any, depth: int) -> Any:
    model = sync_running(net(depth), group)
    with collectives_counted() as calls:
        train(model, part(batches(4), rank, (2, 2)))
    return calls


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_one_collective_a_step_whatever_the_number_of_layers(ranks: Ranks, depth: int) -> None:
    float64s = depth * (2 * 4 + 1)  # two a channel and a count a layer
    for calls in ranks.run(counted_run, depth):
        assert calls == [(8 * float64s, False)] * STEPS


def joint_calls(rank: int, group: Any) -> Any:
    model = net(2, sync="batch", process_group=group)
    with collectives_counted() as calls:
        train(model, part(batches(4), rank, (2, 2)))
    return calls


def test_batch_mode_needs_one_collective_a_layer_and_pass(ranks: Ranks) -> None:
    each = (8 * (2 * 4 + 1), True)  # forward the moments, backward their gradients
    for calls in ranks.run(joint_calls):
        assert calls == [each] * (2 * 2 * STEPS)


def accumulated(rank: int, group: Any) -> Any:
    model = sync_running(net(), group)
    xs = part(batches(8), rank, (5, 3))
    with collectives_counted() as calls:
        for x in xs:
            with renorm.accumulate(model):
                train(model, list(x.split(2)))
    return calls, statistics(model)


def test_micro_batches_are_exchanged_once(ranks: Ranks) -> None:
    answers = ranks.run(accumulated)
    model = net()
    for x in batches(8):
        with renorm.accumulate(model):
            for each in x.split((5, 3)):
                train(model, list(each.split(2)))
    for calls, found in answers:
        assert len(calls) == STEPS
        for name, value in statistics(model).items():
            torch.testing.assert_close(found[name], value)


def batch_accumulated(rank: int, group: Any) -> Any:
    model = net(1, sync="batch", process_group=group)
    with renorm.accumulate(model):
        for x in part(batches(6), rank, (4, 2)):
            model(x)
    return statistics(model)


def test_batch_mode_accumulates_joint_micro_batches(ranks: Ranks) -> None:
    model = net(1)
    with renorm.accumulate(model):
        for x in batches(6):
            model(x)
    for found in ranks.run(batch_accumulated):
        for name, value in statistics(model).items():
            torch.testing.assert_close(found[name], value)


def wrapped(rank: int, group: Any, how: str) -> Any:
    model = net()
    if how == "before":
        sync_running(model, group)
    broadcasts = how != "no broadcast"
    ddp = DistributedDataParallel(model, process_group=group, broadcast_buffers=broadcasts)
    if how != "before":
        sync_running(ddp if how == "outside" else model, group)
    with collectives_counted() as calls:
        train(ddp, part(batches(6), rank, (4, 2)))
    return calls, statistics(model)


@pytest.mark.parametrize("how", ["before", "after", "outside", "no broadcast"])
def test_data_parallel_wrapper_changes_no_statistic(ranks: Ranks, how: str) -> None:
    plain = ranks.run(shared_run, (4, 2))[0][1]
    for calls, found in ranks.run(wrapped, how):
        assert len(calls) == STEPS
        assert all(torch.equal(found[name], value) for name, value in plain.items())


def two_forwards(rank: int, group: Any) -> Any:
    model = net()
    ddp = DistributedDataParallel(sync_running(model, group), process_group=group)
    first, second, third = part(batches(6), rank, (4, 2))
    a, b = ddp(first), ddp(second)
    (a.square().mean() + b.square().mean()).backward()
    ddp(third).square().mean().backward()
    return statistics(model), [p.grad for p in model.parameters()]


def test_two_forwards_before_backward(ranks: Ranks) -> None:
    (found, grads), (others, _) = ranks.run(two_forwards)
    assert all(int(t) == STEPS for n, t in found.items() if n.endswith("tracked"))
    assert all(torch.equal(value, others[name]) for name, value in found.items())
    assert all(bool(g.isfinite().all()) for g in grads)
    plain = ranks.run(shared_run, (4, 2))[0][1]
    assert all(torch.equal(found[name], value) for name, value in plain.items())


READERS: dict[str, Callable[[nn.Module], Any]] = {
    "state_dict": statistics,
    "a layer's state_dict": lambda model: statistics(nn.Sequential(nn.Identity(), model[1])),  # type: ignore[index]
    "deepcopy": lambda model: _buffers(copy.deepcopy(model)),
    "settle": lambda model: _buffers(settle(model)),
    "eval": lambda model: (model.eval()(batches(1)[0]), _buffers(model))[1],
    "eval of a layer": lambda model: (model[1].eval()(torch.randn(1, 4, 2, 2)), _buffers(model))[1],  # type: ignore[index]
    "summary": lambda model: (renorm.summary(model), _buffers(model))[1],
    "move": lambda model: _buffers(model.double().float()),
    "unsync_running": lambda model: _buffers(unsync_running(model)),
    "sync_running": lambda model: _buffers(sync_running(model)),
}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.named_buffers() if name.endswith(STATISTICS)}


def read(rank: int, group: Any, how: str) -> Any:
    model = sync_running(net(), group)
    train(model, part(batches(6), rank, (4, 2)))
    return READERS[how](model)


@pytest.mark.parametrize("how", sorted(READERS))
def test_whoever_reads_the_statistics_has_the_last_step(ranks: Ranks, how: str) -> None:
    exact = ranks.run(shared_run, (4, 2))[0][1]
    for found in ranks.run(read, how):
        for name, value in found.items():
            assert torch.equal(value, exact[name])


def copied(rank: int, group: Any) -> Any:
    model = sync_running(net(), group)
    xs = part(batches(6), rank, (4, 2))
    train(model, xs[:1])
    made = copy.deepcopy(model)
    train(made, xs[1:])
    kept, moved = statistics(model), statistics(made)
    train(model, xs[1:])
    return kept, moved, statistics(model)


def test_copy_shares_its_own_statistics(ranks: Ranks) -> None:
    for kept, moved, later in ranks.run(copied):
        assert all(int(t) == 1 for n, t in kept.items() if n.endswith("tracked"))
        assert all(torch.equal(moved[name], value) for name, value in later.items())


def compiled(rank: int, group: Any) -> Any:
    model = sync_running(net(), group)
    train(torch.compile(model, backend="aot_eager"), part(batches(6), rank, (4, 2)))  # type: ignore[arg-type]
    return statistics(model)


def test_compiled_model_shares_alike(ranks: Ranks) -> None:
    exact = ranks.run(shared_run, (4, 2))[0][1]
    for found in ranks.run(compiled):
        for name, value in found.items():
            torch.testing.assert_close(value, exact[name])


def no_grad_run(rank: int, group: Any) -> Any:
    model = sync_running(net(), group)
    with torch.no_grad():
        for x in part(batches(6), rank, (4, 2)):
            model(x)
    return statistics(model)


def test_training_forwards_under_no_grad_count(ranks: Ranks) -> None:
    exact = ranks.run(shared_run, (4, 2))[0][1]
    for found in ranks.run(no_grad_run):
        assert all(torch.equal(value, exact[name]) for name, value in found.items())


def calibrated_alone(rank: int, group: Any) -> Any:
    model = sync_running(net(), group)
    joint = net(sync="batch", process_group=group)
    if rank == 0:  # the others are not asked to take part
        for each in (model, joint):
            renorm.calibrate(each, batches(4))
    dist.barrier(group)
    return joint[1].sync


def test_one_rank_may_calibrate(ranks: Ranks) -> None:
    assert ranks.run(calibrated_alone) == ["batch", "batch"]


def test_alone_it_is_an_ordinary_model() -> None:
    model, plain = sync_running(net()), net()
    xs = batches(4)
    for y, exact in zip(train(model, xs), train(plain, xs), strict=True):
        torch.testing.assert_close(y, exact)
    for name, value in statistics(plain).items():
        torch.testing.assert_close(statistics(model)[name], value)


def test_undone_it_leaves_no_hook() -> None:
    model = unsync_running(sync_running(net()))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert all(layer.sync is None for layer in model if isinstance(layer, BatchRenorm))
    model(batches(2)[0])
    assert int(model[1].num_batches_tracked) == 1
