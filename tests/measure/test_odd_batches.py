"""Batches that are unusual, and still batches."""

import dataclasses

import pytest
import torch
from surveyed import rows
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.measure import survey
from renorm.measure.records import CompositionShift, CrossExampleInfluence


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def loss(output: Tensor, batch: object) -> Tensor:
    return output.square().sum()


@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_batch_without_an_example(place: int) -> None:
    batches = rows(5)
    batches.insert(place, torch.zeros(0, 3, dtype=torch.float64))
    found = survey(net(), batches, loss)
    assert found.complete
    assert found.examples == 40
    assert found.of(CompositionShift)


def test_batches_that_reach_no_layer() -> None:
    with pytest.raises(ArgumentError, match="None of the 1 normalization layers of Sequential"):
        survey(net(), rows(3), forward=lambda model, batch: batch)
    with pytest.raises(ArgumentError, match="was given a value by 2 batches"):
        survey(net(), [torch.zeros(0, 3, dtype=torch.float64)] * 2)


@dataclasses.dataclass(frozen=True)
class Frame:
    """With an entry that its __init__ does not take."""

    pixels: Tensor
    mean: Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.pixels.mean(1))


def test_a_dataclass_that_computes_an_entry() -> None:
    batches = [Frame(x) for x in rows(4)]
    found = survey(net(), batches, forward=lambda model, frame: model(frame.pixels))
    plain = survey(net(), rows(4))
    assert found.complete
    influence, expected = (f.of(CrossExampleInfluence)[0].examples for f in (found, plain))
    assert influence == expected
