from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from renorm.errors import ArgumentError
from renorm.lab.conditions import CONDITIONS, Clustered, Sampler, Shuffled
from renorm.lab.data import digits


def drawn(sampler: Sampler, labels: Tensor, count: int, seed: int = 0) -> list[Tensor]:
    batches: Iterator[Tensor] = sampler.batches(labels, torch.Generator().manual_seed(seed))
    return list(islice(batches, count))


@given(st.integers(1, 10), st.integers(0, 9), st.integers(1, 8), st.integers(0, 100))
def test_an_epoch_uses_each_example_at_most_once(
    size: int, rest: int, batches: int, seed: int
) -> None:
    size *= 2
    labels = torch.zeros(size * batches + rest % size)
    epoch = torch.cat(drawn(Shuffled(size, 2), labels, batches, seed))
    assert len(epoch) == size * batches == len(epoch.unique())


def test_epochs_differ_and_the_generator_decides() -> None:
    labels = torch.zeros(64)
    first, second = drawn(Shuffled(64, 64), labels, 2)
    assert not torch.equal(first, second)
    assert torch.equal(first, drawn(Shuffled(64, 64), labels, 1)[0])
    assert not torch.equal(first, drawn(Shuffled(64, 64), labels, 1, seed=1)[0])


@given(
    classes=st.integers(2, 12),
    per_group=st.integers(1, 2),
    share=st.integers(1, 4),
    groups=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_groups_have_few_classes_and_batches_are_balanced(
    classes: int, per_group: int, share: int, groups: int, seed: int
) -> None:
    share += per_group == 1  # no groups of one example
    size = share * per_group
    labels = torch.arange(classes).repeat(share + 3)
    sampler = Clustered(size * groups, size, per_group)
    total = torch.zeros(classes)
    for batch in drawn(sampler, labels, 6, seed):
        assert len(batch) == size * groups
        for group in labels[batch].split(size):
            assert sorted(group.bincount()[group.unique()]) == [share] * per_group
        counts = labels[batch].bincount(minlength=classes)
        assert counts.max() - counts.min() <= share
        total += counts
        assert total.max() - total.min() <= share


def test_an_example_returns_after_the_others_of_its_class() -> None:
    labels = torch.arange(2).repeat(8)
    epoch = torch.cat(drawn(Clustered(8, 4, 1), labels, 2))
    assert len(epoch.unique()) == 16


def test_clustered_batches_differ_from_batch_to_batch() -> None:
    task = digits()
    first, second = drawn(Clustered(32, 4, 1), task.train_labels, 2)
    assert not torch.equal(task.train_labels[first], task.train_labels[second])
    assert len(task.train_labels[first].unique()) == 8


@pytest.mark.parametrize(
    ("name", "group", "classes"),
    [("iid", 32, None), ("microbatch", 4, None), ("clustered", 4, 1), ("two_classes", 4, 2)],
)
def test_the_table_builds_what_it_says(name: str, group: int, classes: int | None) -> None:
    sampler = CONDITIONS[name].build(32, 4)
    assert sampler.group_size == group
    assert getattr(sampler, "classes_per_group", None) == classes
    assert "{" not in CONDITIONS[name].about.format(batch=32, group=4)


def test_iid_and_microbatch_see_the_same_batches() -> None:
    labels = digits().train_labels
    iid, micro = (drawn(CONDITIONS[name].build(32, 4), labels, 3) for name in ("iid", "microbatch"))
    assert all(map(torch.equal, iid, micro))


@pytest.mark.parametrize(
    ("batch", "group", "message"),
    [
        (30, 4, "a batch of 30 and groups of 4"),
        (0, 4, "a batch of 0"),
        (4, 0, "groups of 0"),
        (4, -2, "groups of -2"),
        (4, 1, "got a group size of 1"),
    ],
)
def test_sizes_that_do_not_split(batch: int, group: int, message: str) -> None:
    for make in (lambda: Shuffled(batch, group), lambda: Clustered(batch, group, 1)):
        with pytest.raises(ArgumentError, match=message):
            make()


def test_classes_that_do_not_split_a_group() -> None:
    with pytest.raises(ArgumentError, match="multiple of 2 classes, got groups of 5"):
        Clustered(10, 5, 2)


def test_sizes_that_the_data_cannot_fill() -> None:
    with pytest.raises(ArgumentError, match="3 examples there are, got a batch size of 4"):
        drawn(Shuffled(4, 2), torch.zeros(3), 1)
    with pytest.raises(ArgumentError, match="take 4 examples of each of 1 classes"):
        drawn(Clustered(4, 4, 1), torch.zeros(3), 1)
    with pytest.raises(ArgumentError, match="of each of 2 classes, but there are 1 classes"):
        drawn(Clustered(4, 4, 2), torch.zeros(8), 1)
