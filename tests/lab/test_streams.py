import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab.drawing import drawn, no_classes
from renorm.errors import ArgumentError
from renorm.lab.conditions import Frames, Sorted


@given(
    size=st.integers(1, 12),
    classes=st.integers(1, 6),
    more=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_a_sorted_epoch_goes_through_each_class_once(
    size: int, classes: int, more: int, seed: int
) -> None:
    labels = torch.arange(classes).repeat(size + more)
    for epoch in range(2):
        count = len(labels) // size
        batches = drawn(Sorted(size, 1), labels, 2 * count, seed)[epoch * count :][:count]
        stream = torch.cat(batches)
        assert len(stream) == count * size == len(stream.unique())
        runs = labels[stream].unique_consecutive()
        assert len(runs) == len(runs.unique())
        assert all(len(labels[batch].unique()) <= 2 for batch in batches)


def test_sorted_epochs_have_orders_of_their_own() -> None:
    labels = torch.arange(6).repeat(8)
    first, second = torch.cat(drawn(Sorted(8, 4), labels, 12)).chunk(2)
    assert not torch.equal(labels[first].unique_consecutive(), labels[second].unique_consecutive())
    of_zero = [part[labels[part] == 0] for part in (first, second)]
    assert not torch.equal(*of_zero)
    assert torch.equal(of_zero[0].sort().values, of_zero[1].sort().values)
    again, other = (torch.cat(drawn(Sorted(8, 4), labels, 12, seed)) for seed in (0, 1))
    assert torch.equal(torch.cat([first, second]), again)
    assert not torch.equal(again, other)


@given(
    frames=st.integers(2, 6),
    clips=st.integers(1, 6),
    batches=st.integers(1, 6),
    rest=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_a_clip_is_one_example_and_an_epoch_has_it_once(
    frames: int, clips: int, batches: int, rest: int, seed: int
) -> None:
    labels = no_classes(clips * batches + rest % clips)
    sampler = Frames(frames * clips, frames)
    groups = torch.cat(drawn(sampler, labels, batches, seed)).view(-1, frames)
    assert (groups == groups[:, :1]).all()
    assert len(groups) == clips * batches == len(groups[:, 0].unique())


def test_the_seed_decides_the_order_of_clips() -> None:
    labels = no_classes(20)
    first, again, other = (torch.cat(drawn(Frames(8, 2), labels, 10, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(*first.chunk(2))


def test_data_that_cannot_fill_a_batch() -> None:
    with pytest.raises(ArgumentError, match="3 examples there are, got a batch size of 4"):
        drawn(Sorted(4, 2), no_classes(3), 1)
    with pytest.raises(ArgumentError, match=r"8 in clips of 2 frames takes 4 examples.* are 3"):
        drawn(Frames(8, 2), no_classes(3), 1)
