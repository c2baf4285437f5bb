from itertools import chain, islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lab.drawing import no_classes
from renorm.errors import ArgumentError
from renorm.lab.conditions import (
    CONDITIONS,
    PK,
    BatchSampler,
    Clustered,
    Frames,
    Sampler,
    Shuffled,
    Sorted,
)

LABELS = torch.arange(10).repeat(20)
SAMPLERS: list[Sampler] = [
    Shuffled(32, 8),
    Clustered(32, 4, 1),
    PK(4, 8, groups=2),
    Sorted(32, 8),
    Frames(32, 4),
]


def epoch_of(batches: BatchSampler, epoch: int) -> list[list[int]]:
    batches.set_epoch(epoch)
    return list(batches)


def loaded(batches: BatchSampler, workers: int) -> list[list[int]]:
    """The indices that a DataLoader fetches."""
    dataset = TensorDataset(torch.arange(len(LABELS)))
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers)
    assert len(loader) == batches.steps
    return [indices.tolist() for (indices,) in loader]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_an_epoch_has_the_batches_of_its_seed(sampler: Sampler) -> None:
    batches = BatchSampler(sampler, LABELS, steps=9, seed=3)
    assert len(batches) == 9
    first = epoch_of(batches, 0)
    assert [len(batch) for batch in first] == [32] * 9
    assert list(batches) == first
    assert epoch_of(batches, 1) != first
    assert epoch_of(batches, 0) == first
    assert epoch_of(BatchSampler(sampler, LABELS.tolist(), 9, seed=3), 0) == first
    assert epoch_of(BatchSampler(sampler, LABELS, 9, seed=4), 0) != first


def test_a_seed_and_an_epoch_do_not_stand_for_each_other() -> None:
    orders = [
        tuple(epoch_of(BatchSampler(Shuffled(32, 8), LABELS, 1, seed), epoch)[0])
        for seed in (0, 1, 2, 2**32)
        for epoch in (0, 1, 2)
    ]
    assert len(set(orders)) == 12


def test_workers_make_no_difference() -> None:
    batches = BatchSampler(PK(4, 8), LABELS, steps=6)
    for epoch in (0, 5):
        expected = epoch_of(batches, epoch)
        assert loaded(batches, 0) == expected
        assert loaded(batches, 2) == expected


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    list(BatchSampler(Shuffled(32, 8), LABELS, 3))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_share_whole_groups_of_every_batch(sampler: Sampler, world_size: int) -> None:
    whole = epoch_of(BatchSampler(sampler, LABELS, 5), 2)
    parts = [
        epoch_of(BatchSampler(sampler, LABELS, 5, rank=rank, world_size=world_size), 2)
        for rank in range(world_size)
    ]
    assert [list(chain(*shares)) for shares in zip(*parts, strict=True)] == whole
    assert all(len(share) % sampler.group_size == 0 for part in parts for share in part)


@pytest.mark.parametrize("step", [0, 1, 4, 6])
def test_an_epoch_goes_on_where_it_was_left(step: int) -> None:
    batches = BatchSampler(Clustered(32, 4, 1), LABELS, steps=6)
    batches.set_epoch(2)
    expected = list(batches)
    running = iter(batches)
    before = list(islice(running, step))
    state = batches.state_dict()
    assert state == {"step": step}

    resumed = BatchSampler(Clustered(32, 4, 1), LABELS, steps=6)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)
    assert resumed.state_dict() == state
    assert before + list(resumed) == expected
    assert list(resumed) == expected  # the step counts once


def test_an_epoch_that_has_ended_leaves_nothing_to_resume() -> None:
    batches = BatchSampler(Shuffled(32, 8), LABELS, 3)
    expected = epoch_of(batches, 1)
    assert batches.state_dict() == {"step": 0}
    batches.load_state_dict(batches.state_dict())
    assert list(batches) == expected


def test_an_epoch_that_was_given_up_begins_anew() -> None:
    batches = BatchSampler(Shuffled(32, 8), LABELS, 3)
    expected = list(batches)
    next(iter(batches))
    assert batches.state_dict() == {"step": 1}
    assert list(batches) == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [2, 5, None], ids=["within", "at the last", "ended"])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_stateful_data_loader_resumes(workers: int, step: int | None) -> None:
    torchdata = pytest.importorskip(
        "torchdata.stateful_dataloader",
        reason="resumes in torchdata itself, which is not in constraints.txt",
    )
    dataset = TensorDataset(torch.arange(len(LABELS)))

    def make() -> tuple[BatchSampler, Any]:
        batches = BatchSampler(PK(4, 8), LABELS, steps=5)
        return batches, torchdata.StatefulDataLoader(
            dataset, batch_sampler=batches, num_workers=workers
        )

    batches, loader = make()
    third, fourth = epoch_of(batches, 3), epoch_of(batches, 4)
    batches.set_epoch(3)
    before = [indices.tolist() for (indices,) in islice(loader, step)]
    state = loader.state_dict()
    batches, loader = make()
    loader.load_state_dict(state)
    if step is not None:
        batches.set_epoch(3)
        assert before + [indices.tolist() for (indices,) in loader] == third
    batches.set_epoch(4)
    assert [indices.tolist() for (indices,) in loader] == fourth


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1, got 0"),
        ({"seed": -1}, "at least 0, got -1"),
        ({"world_size": 0}, "world_size of 0 and 4 groups of 8"),
        ({"world_size": 3}, "world_size of 3 and 4 groups of 8 in a batch of 32"),
        ({"world_size": 2, "rank": 2}, "from 0 to world_size - 1 = 1, got 2"),
        ({"rank": -1}, "from 0 to world_size - 1 = 0, got -1"),
        ({"labels": no_classes(31)}, "31 examples there are, got a batch size of 32"),
        ({"labels": torch.zeros(64)}, r"got shape \(64,\) of torch.float32"),
        ({"labels": [0.5] * 64}, r"got shape \(64,\) of torch.float32"),
    ],
)
def test_arguments_outside_their_range(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"labels": LABELS, "steps": 3} | options
    with pytest.raises(ArgumentError, match=message):
        BatchSampler(Shuffled(32, 8), **arguments)


def test_one_group_cannot_be_shared() -> None:
    with pytest.raises(ArgumentError, match="world_size of 2 and 1 groups of 32"):
        BatchSampler(CONDITIONS["pk"].build(32, 4), LABELS, 3, world_size=2)


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_that_the_epoch_does_not_have(step: int) -> None:
    with pytest.raises(ArgumentError, match=f"the 3 batches .* got {step}"):
        BatchSampler(Shuffled(32, 8), LABELS, 3).load_state_dict({"step": step})


def test_an_epoch_below_zero() -> None:
    with pytest.raises(ArgumentError, match="at least 0, got -1"):
        BatchSampler(Shuffled(32, 8), LABELS, 3).set_epoch(-1)
