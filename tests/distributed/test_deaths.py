"""Processes that die or stay behind are an error in the others."""

from typing import Any

import pytest
import torch
from torch import Tensor

from renorm.distributed import settle
from renorm.errors import CollectiveError
from support.mortals import die, live
from support.networks import buffers, equal, sharing
from support.steps import MODES, outcome, rows, train

REMEDY = "resume from a checkpoint"


MOMENTS = ["before its forward", "in its forward", "in its backward", "after its backward"]


def step_or_die(model: Any, x: Tensor, moment: str | None) -> None:
    if moment == "before its forward":
        die()
    if moment == "in its forward":
        model[2].register_forward_pre_hook(lambda *_: die())
    y = model(x)
    if moment == "in its backward":
        y.register_hook(lambda _: die())
    y.backward(torch.randn(y.shape))
    if moment == "after its backward":
        die()


def train_until_an_error(
    rank: int, sync: str, moment: str
) -> tuple[str, list[Tensor], list[Tensor], list[Tensor]]:
    """What is raised; buffers before the fatal step, before the call that raised, and after it."""
    model = sharing(sync)
    settled = before = buffers(model)
    for step in range(6):
        if step == 2:
            settled = buffers(settle(model))
        before = buffers(model)
        try:
            step_or_die(model, rows(rank, step), moment if step == 2 and rank == 1 else None)
        except CollectiveError as error:
            return str(error), settled, before, buffers(model)
    return "nothing was raised", settled, before, buffers(model)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("sync", MODES)
def test_a_process_that_dies_is_an_error_in_the_others(sync: str, moment: str) -> None:
    survivor, dead = live(train_until_an_error, sync, moment, timeout=5)
    assert dead.exitcode == -9
    assert survivor.error == ""
    message, settled, before, after = survivor.value
    assert "Process 0 could not exchange statistics with the others of its group of 2" in message
    assert REMEDY in message
    assert all(b.isfinite().all() for b in after)
    if sync == "running":
        assert equal(after, before)
        if "forward" in moment:  # later, what it sent may have come through
            assert equal(after, settled)
    elif moment == "before its forward":
        assert equal(after, settled)
    elif moment == "in its forward":  # between the two layers
        assert equal(after[3:], settled[3:])
        assert int(after[2]) == int(settled[2]) + 1
    else:
        assert [int(after[i]) for i in (2, 5)] == [3, 3]


@pytest.mark.parametrize("sync", MODES)
def test_all_of_several_survivors_get_the_error(sync: str) -> None:
    first, dead, last = live(train_until_an_error, sync, "before its forward", world=3, timeout=2)
    assert dead.exitcode == -9
    for end in (first, last):
        assert "of its group of 3" in end.value[0], end.error
    assert equal(first.value[3], last.value[3])
    assert equal(first.value[3], first.value[1])


def stay_behind(rank: int, sync: str) -> tuple[str, bool]:
    model = sharing(sync)
    train(model, rows(rank))
    before = buffers(settle(model))
    if rank == 1:
        return "", True
    message = outcome(lambda: [train(model, rows(rank, step)) for step in (1, 2)])
    return message, equal(buffers(model), before)


@pytest.mark.parametrize("sync", MODES)
def test_a_process_that_stays_behind_is_an_error_after_the_timeout(sync: str) -> None:
    waiting, _ = live(stay_behind, sync, timeout=1)
    message, unchanged = waiting.value
    assert message.startswith("CollectiveError: Process 0 could not exchange statistics")
    assert "timed out" in message.lower()
    assert unchanged


def saved_after_a_death(rank: int) -> tuple[list[str], bool]:
    model = sharing("running")
    train(model, rows(rank))
    before = buffers(settle(model))
    if rank == 1:
        die()
    failed = outcome(lambda: [train(model, rows(rank, step)) for step in (1, 2)])
    return [failed, outcome(model.state_dict)], equal(buffers(model), before)


def test_a_survivor_can_save_its_statistics() -> None:
    (failed, saved), unchanged = live(saved_after_a_death, timeout=2)[0].value
    assert failed.startswith("CollectiveError")
    assert saved == "fine"
    assert unchanged
