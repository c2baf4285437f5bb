"""Groups that are not there, sharing that was not installed, files that cannot hold it."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import renorm
from renorm.distributed import settle, sync_running
from renorm.errors import ArgumentError
from renorm.nn import BatchRenorm
from support.networks import buffers, equal, renormed, sequential, sharing
from support.ranks import Ranks
from support.steps import MODES, attempt, near, outcome, rows, train


def in_the_group_of_the_first(rank: int, group: Any, sync: str) -> tuple[str, bool, bool]:
    members = dist.new_group([0])
    model, plain = sharing(sync, members), renormed()
    plain.load_state_dict(model.state_dict())
    before = buffers(model)
    message = outcome(lambda: train(model, rows(rank)))
    train(plain, rows(rank))
    after = buffers(model)
    return message, equal(after, before), near(after, buffers(plain))


@pytest.mark.parametrize("sync", MODES)
def test_a_group_must_contain_the_process(ranks: Ranks, sync: str) -> None:
    member, stranger = ranks.run(in_the_group_of_the_first, sync, size=2)
    assert member == ("fine", False, True)
    message, unchanged, _ = stranger
    assert message.startswith("ArgumentError: Process 1 is not in the process group")
    assert "new_group" in message
    assert unchanged


@pytest.mark.parametrize("sync", MODES)
def test_a_launch_of_several_processes_needs_a_process_group(
    sync: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = sharing(sync)
    before = buffers(model)
    with pytest.raises(ArgumentError, match=r"WORLD_SIZE is 2.*init_process_group"):
        model(rows(0))
    assert equal(buffers(model), before)


@pytest.mark.parametrize("launched", [None, "1"])
@pytest.mark.parametrize("sync", MODES)
def test_a_process_alone_trains_as_without_sync(
    sync: str, launched: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if launched is not None:
        monkeypatch.setenv("WORLD_SIZE", launched)
    model, plain = sharing(sync), renormed()
    plain.load_state_dict(model.state_dict())
    for step in range(3):
        x = rows(0, step)
        assert near([model(x)], [plain(x)])
    assert near(buffers(model), buffers(plain))
    assert [int(model[i].num_batches_tracked) for i in (1, 4)] == [3, 3]


def alone_of_several(rank: int, group: Any) -> tuple[str, bool]:
    model = renormed(sync="running", process_group=group)
    return attempt(model, rows(rank))


def test_layers_that_nothing_shares_are_refused_in_a_group(ranks: Ranks) -> None:
    for message, unchanged in ranks.run(alone_of_several):
        assert message.startswith("ArgumentError: BatchRenorm has sync='running'")
        assert "sync_running(model)" in message
        assert unchanged


def test_layers_that_nothing_shares_evaluate() -> None:
    assert renormed(sync="running").eval()(rows(0)).shape == (5, 2)


def part_of_a_model(rank: int, group: Any) -> tuple[str, str, bool]:
    model = sharing("running", group)
    before = buffers(model)
    message = outcome(lambda: model[:3](rows(rank)))
    evaluated = outcome(lambda: model[:3].eval()(rows(rank)))
    return message, evaluated, equal(buffers(model), before)


def test_a_layer_is_not_trained_outside_of_the_forward_of_its_model(ranks: Ranks) -> None:
    for message, evaluated, unchanged in ranks.run(part_of_a_model):
        assert message.startswith("ArgumentError: A BatchRenorm of Sequential is trained outside")
        assert "Call sync_running on the module that you call" in message
        assert "renorm.accumulate(model)" in message
        assert evaluated == "fine"
        assert unchanged


def shared_twice(rank: int, group: Any) -> list[list[Tensor]]:
    once, twice = sharing("running", group), sharing("running", group)
    twice.load_state_dict(once.state_dict())
    for step in range(3):
        for model in (once, twice):
            train(model, rows(rank, step))
        sync_running(twice, group)
    return [buffers(settle(model)) for model in (once, twice)]


def test_sync_running_may_be_called_again(ranks: Ranks) -> None:
    for once, twice in ranks.run(shared_twice):
        assert equal(once, twice)
        assert int(once[2]) == 3


def test_overlapping_models_are_refused() -> None:
    inner = sequential(nn.Linear(3, 3), BatchRenorm(3))
    outer = sequential(inner, BatchRenorm(3))
    sync_running(inner)
    with pytest.raises(ArgumentError, match=r"'0\.1' are already put off"):
        sync_running(outer)
    assert outer[1].sync is None
    outer.train()
    inner(rows(0))
    assert int(inner[1].num_batches_tracked) == 1


def test_a_part_of_a_shared_model_is_refused() -> None:
    model = sharing("running")
    with pytest.raises(ArgumentError, match="already put off"):
        sync_running(model[1])
    model(rows(0))
    assert int(model[1].num_batches_tracked) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_sync_running_is_refused_within_accumulate(shared: bool) -> None:
    model = sharing("running") if shared else renormed()
    with renorm.accumulate(model):
        model(rows(0))
        with pytest.raises(ArgumentError, match="outside of accumulate"):
            sync_running(model)
        model(rows(1))
    assert [int(model[i].num_batches_tracked) for i in (1, 4)] == [1, 1]


def test_a_model_without_layers_to_share_is_refused() -> None:
    with pytest.raises(ArgumentError, match="has no batch renorm layer with running statistics"):
        sync_running(nn.Sequential(nn.Linear(3, 3), BatchRenorm(3, sync="batch")))


def copied(rank: int, group: Any, sync: str) -> tuple[bool, str, str, list[Tensor], list[Tensor]]:
    model = sharing(sync, group)
    train(model, rows(rank))
    double = copy.deepcopy(model)
    shared = all(double[i].process_group is group for i in (1, 4))
    for m in (model, double):
        train(m, rows(rank, 1))
    pickled = outcome(lambda: pickle.dumps(model[1]))
    saved = outcome(lambda: torch.save(model, io.BytesIO()))
    return shared, pickled, saved, buffers(settle(model)), buffers(settle(double))


@pytest.mark.parametrize("sync", MODES)
def test_copies_share_the_group_and_files_refuse_it(ranks: Ranks, sync: str) -> None:
    for shared, pickled, saved, original, double in ranks.run(copied, sync):
        assert shared
        for message in (pickled, saved):
            assert message.startswith("ArgumentError: A process group cannot be written")
            assert "state_dict" in message
        assert equal(original, double)
        assert int(double[2]) == 2


def test_a_layer_of_the_default_group_is_written_to_a_file() -> None:
    model = sharing("running")
    model(rows(0))
    loaded = pickle.loads(pickle.dumps(model))
    assert equal(buffers(loaded), buffers(model))
    assert loaded[1].sync == "running"
    loaded(rows(0, 1))
    assert int(settle(loaded)[1].num_batches_tracked) == 2
