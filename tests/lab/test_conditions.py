import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lab.drawing import drawn, no_classes
from renorm.errors import ArgumentError
from renorm.lab.conditions import CONDITIONS, PK, Clustered, Condition, Frames, Shuffled, Sorted
from renorm.lab.conditions.clustered import Halved
from renorm.lab.data import digits


@given(st.integers(1, 10), st.integers(0, 9), st.integers(1, 8), st.integers(0, 100))
def test_an_epoch_uses_each_example_at_most_once(
    size: int, rest: int, batches: int, seed: int
) -> None:
    labels = no_classes(size * batches + rest % size)
    epoch = torch.cat(drawn(Shuffled(size, 1), labels, batches, seed))
    assert len(epoch) == size * batches == len(epoch.unique())


def test_epochs_differ_and_the_generator_decides() -> None:
    labels = no_classes(64)
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
    ("name", "sampler"),
    [
        ("iid", Shuffled(32, 32)),
        ("microbatch", Shuffled(32, 4)),
        ("clustered", Clustered(32, 4, 1)),
        ("two_classes", Clustered(32, 4, 2)),
        ("four_classes", Clustered(32, 4, 4)),
        ("twins", Clustered(32, 4, 2)),
        ("halved_twins", Halved(Clustered(32, 4, 2))),
        ("accumulation", Shuffled(32, 4)),
        ("devices", Shuffled(32, 4)),
        ("pk", PK(8, 4)),
        ("sorted", Sorted(32, 4)),
        ("frames", Frames(32, 4)),
        ("shift", Shuffled(32, 32)),
    ],
)
def test_the_table_builds_what_it_says(name: str, sampler: object) -> None:
    assert CONDITIONS[name].build(32, 4) == sampler


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_every_condition_draws_batches_of_its_sizes(condition: Condition) -> None:
    sampler = condition.build(32, 4)
    labels = digits().test_labels
    assert sampler.batch_size == 32
    assert sampler.group_size in (2, 4, 32)  # half a group, a group, the batch
    first, second = drawn(sampler, labels, 2)
    assert first.shape == second.shape == (32,)
    assert first.dtype == torch.int64
    assert all(map(torch.equal, (first, second), drawn(sampler, labels, 2)))
    assert not torch.equal(first, drawn(sampler, labels, 1, seed=1)[0])


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_abouts_are_one_plain_line(condition: Condition) -> None:
    about = condition.about.format(batch=32, group=4)
    assert "{" not in about
    assert "\n" not in about
    assert len(about) <= 80
    assert condition.needs_images == (condition.name in ("frames", "shift"))


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
    ],
)
def test_sizes_that_do_not_split(batch: int, group: int, message: str) -> None:
    for condition in CONDITIONS.values():
        if condition.build(32, 4).group_size == 4 or condition.name == "pk":
            with pytest.raises(ArgumentError, match=message):
                condition.build(batch, group)
    with pytest.raises(ArgumentError, match=message):
        Shuffled(batch, group)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clustered", "of one class whatever the order, got a group size of 1"),
        ("two_classes", "multiple of 2 classes, got groups of 1"),
        ("pk", "at least 2 examples in a batch to make a pair, got 1"),
        ("frames", "A clip has several frames, got a group size of 1"),
    ],
)
def test_groups_of_one_where_they_make_no_sense(name: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        CONDITIONS[name].build(4, 1)


@pytest.mark.parametrize("name", ["microbatch", "accumulation", "sorted"])
def test_groups_of_one_where_they_make_sense(name: str) -> None:
    assert CONDITIONS[name].build(4, 1).group_size == 1


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(64), r"got shape \(64,\) of torch.float32"),
        (torch.zeros(64, 10, dtype=torch.long), r"got shape \(64, 10\) of torch.int64"),
        (torch.tensor(3), r"got shape \(\) of torch.int64"),
        (torch.zeros(64, dtype=torch.complex64), "of torch.complex64"),
    ],
    ids=["float", "one-hot", "scalar", "complex"],
)
def test_labels_that_are_no_whole_number_an_example(
    name: str, labels: Tensor, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        drawn(CONDITIONS[name].build(8, 4), labels, 1)


def test_classes_that_do_not_split_a_group() -> None:
    with pytest.raises(ArgumentError, match="multiple of 2 classes, got groups of 5"):
        Clustered(10, 5, 2)


def test_sizes_that_the_data_cannot_fill() -> None:
    with pytest.raises(ArgumentError, match="3 examples there are, got a batch size of 4"):
        drawn(Shuffled(4, 2), no_classes(3), 1)
    with pytest.raises(ArgumentError, match="take 4 examples of each of 1 classes"):
        drawn(Clustered(4, 4, 1), no_classes(3), 1)
    with pytest.raises(ArgumentError, match="of each of 2 classes, but there are 1 classes"):
        drawn(Clustered(4, 4, 2), no_classes(8), 1)
    with pytest.raises(ArgumentError, match="there are 0 classes and the smallest has 0"):
        drawn(Clustered(4, 4, 1), no_classes(0), 1)
