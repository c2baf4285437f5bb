import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab.drawing import drawn
from renorm.errors import ArgumentError
from renorm.lab.conditions import PK


@st.composite
def cases(draw: st.DrawFn) -> tuple[PK, torch.Tensor]:
    """A sampler and labels that it fits, in any order, with classes of unequal sizes."""
    per_class = draw(st.integers(2, 5))
    sizes = draw(st.lists(st.integers(per_class, 12), min_size=1, max_size=9))
    names = draw(st.permutations(range(-3, 20)))[: len(sizes)]
    labels = torch.tensor(names).repeat_interleave(torch.tensor(sizes))
    order = torch.randperm(
        len(labels), generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))
    )
    return PK(draw(st.integers(1, len(sizes))), per_class), labels[order]


@given(cases(), st.integers(0, 1000))
def test_a_batch_is_p_classes_of_k_different_examples(
    case: tuple[PK, torch.Tensor], seed: int
) -> None:
    sampler, labels = case
    for batch in drawn(sampler, labels, 6, seed):
        assert len(batch) == sampler.batch_size == len(batch.unique())
        blocks = labels[batch].view(sampler.classes, sampler.per_class)
        assert (blocks == blocks[:, :1]).all()
        assert len(blocks[:, 0].unique()) == sampler.classes


@given(cases(), st.integers(0, 1000))
def test_nothing_returns_before_the_others_were_used(
    case: tuple[PK, torch.Tensor], seed: int
) -> None:
    sampler, labels = case
    classes = labels.unique(return_inverse=True)[1]
    uses = torch.zeros(len(labels), dtype=torch.long)
    turns = torch.zeros(len(classes.unique()), dtype=torch.long)
    for batch in drawn(sampler, labels, 12, seed):
        uses[batch] += 1
        turns[classes[batch[:: sampler.per_class]]] += 1
        assert turns.max() - turns.min() <= 1
        for kind in range(len(turns)):
            of_class = uses[classes == kind]
            assert of_class.max() - of_class.min() <= 1
            assert of_class.sum() == turns[kind] * sampler.per_class


def test_every_example_is_used() -> None:
    labels = torch.arange(6).repeat(7)
    # a class is in 4 of 6 batches, and its 7 examples take 3 turns of 3
    batches = drawn(PK(4, 3), labels, 6)
    assert len(torch.cat(batches).unique()) == len(labels)


def test_the_seed_decides() -> None:
    labels = torch.arange(10).repeat(8)
    first, again, other = (torch.cat(drawn(PK(4, 2), labels, 5, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_classes_that_do_not_come_out_even_meet_different_companions() -> None:
    labels = torch.arange(5).repeat(4)
    seen = {tuple(sorted(labels[b].unique().tolist())) for b in drawn(PK(2, 2), labels, 200)}
    assert len(seen) == 10  # all pairs of 5 classes


def test_groups_are_of_whole_classes() -> None:
    sampler = PK(classes=6, per_class=4, groups=3)
    assert (sampler.batch_size, sampler.group_size) == (24, 8)
    assert PK(6, 4).group_size == 24


@pytest.mark.parametrize(
    ("classes", "per_class", "groups", "message"),
    [
        (0, 4, 1, "got 0 classes and 1 groups"),
        (4, 4, 0, "got 4 classes and 0 groups"),
        (4, 4, 3, "got 4 classes and 3 groups"),
        (4, 1, 1, "to make a pair, got 1"),
        (4, 0, 1, "to make a pair, got 0"),
    ],
)
def test_numbers_outside_their_range(
    classes: int, per_class: int, groups: int, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        PK(classes, per_class, groups)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.arange(3).repeat(8), "takes 4 different classes, but there are 3"),
        (torch.arange(0), "takes 4 different classes, but there are 0"),
        (torch.tensor([0, 0, 1, 1, 2, 2, 3]), "2 different .* the smallest class has 1"),
    ],
    ids=["classes", "none", "examples"],
)
def test_data_that_cannot_fill_a_batch(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        drawn(PK(4, 2), labels, 1)
