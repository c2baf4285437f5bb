"""Processes that are set up differently are told so, in each of them."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from renorm import limits
from renorm.distributed import settle, sync_running
from renorm.nn import BatchRenorm
from renorm.nn.sharing import AGREE_EVERY
from support.mortals import live
from support.networks import buffers, equal, renormed, sharing
from support.ranks import Ranks
from support.steps import MODES, attempt, outcome, rows, train


def alike(rank: int) -> dict[str, Any]:
    return {}


def other_limits(rank: int) -> dict[str, Any]:
    return {"limits": limits.fixed(1.5 + rank, 0.4)}


def other_eps(rank: int) -> dict[str, Any]:
    return {"eps": (1e-5, 1e-3)[rank]}


def other_momentum(rank: int) -> dict[str, Any]:
    return {"momentum": (0.1, None)[rank]}


def other_channels(rank: int) -> dict[str, Any]:
    return {"channels": 4 + rank}


DIFFERENCES = {
    "limits of '1'": (other_limits, "rank 0: r_max 1.5, d_max 0.4; rank 1: r_max 2.5, d_max 0.4"),
    "eps of '1'": (other_eps, "rank 0: 1e-05; rank 1: 0.001"),
    "momentum of '1'": (other_momentum, "rank 0: 0.1; rank 1: None"),
    "the number of channels of '1'": (other_channels, "rank 0: 4; rank 1: 5"),
}


def first_steps(
    rank: int, group: Any, sync: str, settings: Callable[[int], dict[str, Any]]
) -> tuple[list[str], bool]:
    model = sharing(sync, group, **settings(rank))
    before = buffers(model)
    messages = [outcome(lambda: train(model, rows(rank))) for _ in range(2)]
    return messages, equal(buffers(model), before)


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("sync", MODES)
def test_other_settings_are_named_in_each_process(ranks: Ranks, sync: str, name: str) -> None:
    settings, values = DIFFERENCES[name]
    what = name if sync == "running" else name.removesuffix(" of '1'")
    for messages, unchanged in ranks.run(first_steps, sync, settings):
        for message in messages:
            assert message.startswith("ArgumentError")
            assert f"{what} differs ({values})" in message
        assert unchanged


def test_equal_settings_are_not_refused(ranks: Ranks) -> None:
    for sync in MODES:
        for messages, _ in ranks.run(first_steps, sync, alike):
            assert messages == ["fine", "fine"]


def other_statistics(rank: int, group: Any, sync: str, buffer: str) -> tuple[str, bool]:
    model = sharing(sync, group)
    if rank == 1:
        getattr(model[1], buffer).add_(1)
    return attempt(model, rows(rank))


@pytest.mark.parametrize("buffer", ["running_mean", "running_var", "num_batches_tracked"])
@pytest.mark.parametrize("sync", MODES)
def test_other_statistics_are_named_in_each_process(ranks: Ranks, sync: str, buffer: str) -> None:
    answers = ranks.run(other_statistics, sync, buffer)
    for message, unchanged in answers:
        assert message.startswith("ArgumentError")
        assert f"{buffer}" in message
        assert "one checkpoint" in message
        assert message == answers[0][0]
        values = message.partition("differs (")[2].partition("). ")[0].split("; ")
        assert [v.partition(":")[0] for v in values] == ["rank 0", "rank 1"]
        assert unchanged


def fewer_layers(rank: int, group: Any) -> tuple[str, bool]:
    model = renormed()[: 5 - 3 * rank]
    sync_running(model, group)
    return attempt(model, rows(rank))


def test_other_numbers_of_layers_are_named_in_each_process(ranks: Ranks) -> None:
    for message, unchanged in ranks.run(fewer_layers):
        assert message.startswith("ArgumentError")
        assert "the number of layers differs (rank 0: 2; rank 1: 1)" in message
        assert unchanged


def fewer_joint_layers(rank: int) -> str:
    model = sharing("batch")[: 5 - 3 * rank]
    return outcome(lambda: train(model, rows(rank)))


def test_other_numbers_of_joint_layers_are_an_error_after_the_timeout() -> None:
    for end in live(fewer_joint_layers, timeout=1):
        assert end.value.startswith("CollectiveError"), end
        assert "did not run the same layers" in end.value


def within() -> Callable[..., tuple[float, float]]:
    def bounds(step: int, d_max: float) -> tuple[float, float]:
        return 1.5, d_max

    return bounds


def partial_limits(rank: int) -> dict[str, Any]:
    functions = [within(), within()]  # of which each process takes another, as memory may have it
    return {"limits": functools.partial(functions[rank], d_max=0.4)}


@pytest.mark.parametrize("sync", MODES)
def test_limits_of_a_partial_function_are_the_same_everywhere(sync: str) -> None:
    for end in live(first_steps, None, sync, partial_limits):
        assert end.value[0] == ["fine", "fine"]


def loaded_by_one(rank: int, group: Any) -> tuple[str, list[Tensor]]:
    model = sharing("running", group)
    train(model, rows(rank))
    settle(model)
    if rank == 1:
        model[1].load_state_dict(BatchRenorm(4).state_dict())
    steps = range(1, AGREE_EVERY + 1)
    message = outcome(lambda: [train(model, rows(rank, step)) for step in steps])
    return message, buffers(settle(model))


def test_statistics_that_one_process_alone_loads_do_not_drift_apart(ranks: Ranks) -> None:
    (first, statistics), (second, others) = ranks.run(loaded_by_one)
    assert first.startswith("ArgumentError")
    assert second == first
    assert not equal(statistics, others)
