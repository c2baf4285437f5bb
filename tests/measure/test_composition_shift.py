"""Losses on batches as they come and reshuffled."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from surveyed import rows
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.measure import survey
from renorm.measure.composition_shift import shuffled
from renorm.measure.records import CompositionShift, Note

Batch = tuple[Tensor, Tensor]


def loss(output: Tensor, batch: Batch) -> Tensor:
    return (output[:, 0] - batch[1]).square().mean()


def shift(model: nn.Module, batches: list, **options: Any) -> CompositionShift:
    found = survey(model, batches, loss, quantities="composition_shift", **options)
    return found.of(CompositionShift)[0]


def paired(count: int, size: int = 6) -> list[Batch]:
    return [(x, x[:, 0].sin()) for x in rows(count, size)]


@pytest.mark.parametrize("sizes", [(6, 6), (6, 3)])
def test_against_the_same_by_hand(sizes: tuple[int, ...]) -> None:
    batches = [(x[:n], x[:n, 0].sin()) for x, n in zip(rows(2, 6), sizes, strict=True)]
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double().train()
    found = shift(model, [*batches, *paired(2)])  # half of all are mixed
    order = np.random.default_rng(0).permutation(sum(sizes))
    x = torch.cat([batch[0] for batch in batches])[order].split(list(sizes))
    y = torch.cat([batch[1] for batch in batches])[order].split(list(sizes))
    figures = []
    for pairs in (batches, list(zip(x, y, strict=True))):
        losses = [loss(model(pair[0]), pair).item() for pair in pairs]
        mean = sum(n * v for n, v in zip(sizes, losses, strict=True)) / sum(sizes)
        squares = [
            (n / sum(sizes)) ** 2 * (v - mean) ** 2 for n, v in zip(sizes, losses, strict=True)
        ]
        figures.append((mean, math.sqrt(sum(squares) * 2)))
    assert (found.batches, found.shuffles) == (2, 1)
    assert found.loss_composed == pytest.approx(figures[0][0])
    assert found.loss_shuffled == pytest.approx(figures[1][0])
    assert found.shift == pytest.approx(figures[1][0] - figures[0][0])
    assert found.error == pytest.approx(math.hypot(figures[0][1], figures[1][1]))


def test_the_same_examples_are_shuffled() -> None:
    batches = [{"x": x, "y": [x[:, 0], x[:, 1]], "name": "rows"} for x in rows(4, 3)]
    found = list(shuffled(batches, np.random.default_rng(0)))
    assert [len(batch["x"]) for batch in found] == [3] * 4
    assert all(torch.equal(b["x"][:, 0], b["y"][0]) and b["name"] == "rows" for b in found)
    before, after = (torch.cat([b["x"] for b in each]) for each in (batches, found))
    assert not torch.equal(before, after)
    assert torch.equal(before.sort(0).values, after.sort(0).values)


def test_independent_batches_show_no_shift() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    found = shift(model, paired(16), depth="deep")
    assert found.shift is not None
    assert found.error is not None
    assert found.shuffles == 8
    assert abs(found.shift) < 3 * found.error


def test_a_model_that_relies_on_the_composition() -> None:
    # every batch has an offset that normalization takes away, and the target is without it
    batches = [(x + 9 * torch.randn(1, 3).double(), x[:, 0]) for x in rows(8, 16)]
    model: Any = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, 0, 0]]))  # what it is trained to: 2 z + 1
        model[1].bias.fill_(1)
    found = shift(model, batches)
    assert found.shift is not None
    assert found.error is not None
    assert found.shift > 4 * found.error


def test_what_it_needs() -> None:
    model = nn.BatchNorm1d(3).double()
    with pytest.raises(ArgumentError, match=r"composition_shift was asked for.*give loss="):
        survey(model, rows(3), quantities="composition_shift")
    with pytest.raises(ArgumentError, match="mixes the examples of two batches"):
        shift(model, paired(1))
    # strings of the examples would not be shuffled with them
    named = [(x, y, [f"{i}.png" for _ in y]) for i, (x, y) in enumerate(paired(3))]
    with pytest.raises(ArgumentError, match="nothing else that differs"):
        shift(model, named)
    assert "composition_shift" in [n.quantity for n in survey(model, named, loss).of(Note)]
