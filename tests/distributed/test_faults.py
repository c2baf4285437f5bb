"""Values that overflow, forwards that raise, and statistics that must outlive both."""

import copy
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import renorm
from renorm.distributed import settle, sync_running
from renorm.nn import BatchRenorm
from support.mortals import live
from support.networks import buffers, equal, sequential, sharing
from support.ranks import Ranks
from support.steps import outcome, rows, train


def steps_of(rank: int, group: Any, sync: str, batches: list[list[Tensor]]) -> list[list[Tensor]]:
    """The buffers after each step; ``batches`` are those of each rank in each step."""
    model = sharing(sync, group)
    after = []
    for batch in batches:
        train(model, batch[rank])
        after.append(buffers(settle(model)))
    return after


def spoiled(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[1, 2] = value
    return x


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_running_statistics_leave_out_the_process_with_a_bad_batch(
    ranks: Ranks, value: float
) -> None:
    clean = [[rows(rank, step) for rank in range(3)] for step in range(3)]
    bad = [
        [x if (r, s) != (1, 1) else spoiled(x, value) for r, x in enumerate(xs)]
        for s, xs in enumerate(clean)
    ]
    without = [
        [x if (r, s) != (1, 1) else x[:0] for r, x in enumerate(xs)] for s, xs in enumerate(clean)
    ]
    found = ranks.run(steps_of, "running", bad, size=3)
    exact = ranks.run(steps_of, "running", without, size=3)
    for rank in range(3):
        for step in range(3):
            assert equal(found[rank][step], exact[rank][step])
            assert equal(found[rank][step], found[0][step])
            assert all(b.isfinite().all() for b in found[rank][step])
            assert int(found[rank][step][2]) == step + 1


@pytest.mark.parametrize(
    ("sync", "bad"), [("batch", (0,)), ("batch", (1,)), ("batch", (0, 1)), ("running", (0, 1))]
)
def test_a_bad_step_moves_nothing_and_the_next_one_recovers(
    ranks: Ranks, sync: str, bad: tuple[int, ...]
) -> None:
    nan = float("nan")
    clean = [[rows(rank, step) for rank in range(2)] for step in range(2)]
    between = [spoiled(rows(r, 7), nan) if r in bad else rows(r, 7) for r in range(2)]
    found = ranks.run(steps_of, sync, [clean[0], between, clean[1]])
    exact = ranks.run(steps_of, sync, clean)
    for rank in range(2):
        assert equal(found[rank][0], found[rank][1])
        assert equal(found[rank][1], exact[rank][0])
        assert equal(found[rank][2], exact[rank][1])


def fails(*_: Any) -> None:
    raise ZeroDivisionError


def steps_with_a_failure(
    rank: int, group: Any, failing: tuple[int, ...], where: int, at: int
) -> list[Tensor]:
    model = sharing("running", group)
    for step in range(4):
        hook = None
        if rank in failing and step == at:
            hook = model[where].register_forward_pre_hook(fails)
        try:
            train(model, rows(rank, step))
        except ZeroDivisionError:
            assert hook is not None
            hook.remove()
    return buffers(settle(model))


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("where", [0, 2])
@pytest.mark.parametrize("failing", [(0, 1, 2), (1,)])
@pytest.mark.filterwarnings("ignore:.*always_call")
def test_training_goes_on_after_a_forward_that_raised(
    ranks: Ranks, failing: tuple[int, ...], where: int, at: int
) -> None:
    found = ranks.run(steps_with_a_failure, failing, where, at, size=3)
    for statistics in found:
        assert equal(statistics, found[0])
        assert all(b.isfinite().all() for b in statistics)
        everywhere = len(failing) == 3
        assert int(statistics[2]) == (3 if everywhere else 4)
        assert int(statistics[5]) == (3 if everywhere else 4)


def joint_steps_with_a_failure(rank: int) -> list[str]:
    model = sharing("batch")
    messages = []
    for step in range(3):
        hook = None
        if rank == 1 and step == 1:
            hook = model[0].register_forward_pre_hook(fails)
        messages.append(outcome(lambda s=step: train(model, rows(rank, s))))
        if hook is not None:
            return messages
    return messages


def test_a_joint_batch_that_one_process_does_not_bring_is_an_error_in_the_others() -> None:
    waiting, failing = live(joint_steps_with_a_failure, timeout=1)
    assert failing.value == ["fine", "ZeroDivisionError: "]
    assert waiting.value[0] == "fine"
    assert waiting.value[1].startswith("CollectiveError")
    assert "did not run the same layers" in waiting.value[1]


def wrapped_with_one_reader(rank: int, group: Any, reader: int, how: str) -> list[Tensor]:
    model = sharing("running", group)
    wrapped = DistributedDataParallel(model, process_group=group)
    for step in range(4):
        train(wrapped, rows(rank, step))
        if rank == reader and how == "a checkpoint":
            model.state_dict()
        elif rank == reader:
            model.eval()(rows(7))
            model.train()
    return buffers(settle(model))


@pytest.mark.parametrize("how", ["a checkpoint", "an evaluation"])
@pytest.mark.parametrize("reader", [0, 1])
def test_buffers_that_ddp_broadcasts_may_be_read_by_one_process(
    ranks: Ranks, reader: int, how: str
) -> None:
    exact = ranks.run(wrapped_with_one_reader, -1, how)
    for statistics in ranks.run(wrapped_with_one_reader, reader, how):
        assert int(statistics[2]) == 4
        assert equal(statistics, exact[0])


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def steps_after_an_interrupt(rank: int, group: Any) -> int:
    model = sharing("running", group)
    hook = model[2].register_forward_pre_hook(interrupted)
    with suppress(KeyboardInterrupt):
        model(rows(rank))
    hook.remove()
    for step in range(3):
        train(model, rows(rank, step))
    return int(settle(model)[1].num_batches_tracked)


def test_statistics_go_on_after_a_forward_that_was_interrupted(ranks: Ranks) -> None:
    first, second = ranks.run(steps_after_an_interrupt)
    assert first == second
    assert first >= 3


def accumulated_with_a_failure(rank: int, group: Any, failing: int) -> list[Tensor]:
    model = sharing("running", group)
    for step in range(4):
        with suppress(ZeroDivisionError), renorm.accumulate(model):
            train(model, rows(rank, step))
            if rank >= failing and step == 1:
                raise ZeroDivisionError
    return buffers(settle(model))


@pytest.mark.parametrize(("failing", "steps"), [(0, 3), (1, 4)])
def test_training_goes_on_after_an_accumulation_that_raised(failing: int, steps: int) -> None:
    first, second = live(accumulated_with_a_failure, None, failing, timeout=2)
    assert first.error == second.error == ""
    assert equal(first.value, second.value)
    assert int(first.value[2]) == steps


def far_apart(rank: int, dtype: torch.dtype) -> Tensor:
    """Rows about 0, or rows that are all the same and whose square is beyond the dtype."""
    far = torch.finfo(dtype).max ** 0.6
    return torch.full((4, 4), far, dtype=dtype) if rank else torch.randn(4, 4, dtype=dtype)


def step_far_apart(rank: int, group: Any, dtype: torch.dtype) -> list[Tensor]:
    layer = sync_running(BatchRenorm(4, momentum=0.1).to(dtype), group)
    layer(far_apart(rank, dtype))
    return buffers(settle(layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_joint_variance_beyond_the_dtype_moves_nothing(ranks: Ranks, dtype: torch.dtype) -> None:
    for mean, var, steps in ranks.run(step_far_apart, dtype):
        assert mean.isfinite().all()
        assert var.isfinite().all()
        assert int(steps) in (0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pooled_variance_beyond_the_dtype_moves_nothing(dtype: torch.dtype) -> None:
    layer = BatchRenorm(4, momentum=0.1).to(dtype)
    with renorm.accumulate(layer):
        for rank in range(2):
            layer(far_apart(rank, dtype))
    assert all(b.isfinite().all() for b in layer.buffers())


def test_a_copy_made_within_accumulate_trains() -> None:
    model = sharing("running")
    with renorm.accumulate(model):
        model(rows(0))
        double = copy.deepcopy(model)
    double(rows(1))
    assert int(settle(double)[1].num_batches_tracked) == 1
    assert int(model[1].num_batches_tracked) == 1


def test_layers_that_wait_for_their_first_input_are_shared() -> None:
    model = sequential(nn.LazyLinear(4), renorm.LazyBatchRenorm1d())
    sync_running(model)
    for step in range(2):
        model(rows(0, step))
    assert int(settle(model)[1].num_batches_tracked) == 2
