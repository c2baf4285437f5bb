"""Replacing an example of a batch, against the same done by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from surveyed import FrozenBatchNorm2d, images, rows
from torch import Tensor, nn

from renorm import BatchRenorm1d, limits
from renorm.errors import ArgumentError
from renorm.measure import survey
from renorm.measure.records import CrossExampleInfluence, Note


def influence(model: nn.Module, batches: list, **options: Any) -> list[CrossExampleInfluence]:
    found = survey(model, batches, quantities="cross_example_influence", **options)
    return list(found.of(CrossExampleInfluence))


def test_two_examples_by_hand() -> None:
    # of two examples, one is replaced by a copy of the other: from -1 and 1 to 0 and 0
    found = influence(
        nn.BatchNorm1d(1, eps=1e-12).double(), [torch.tensor([[1.0], [5.0]]).double()]
    )
    assert sorted((one.of, one.examples) for one in found) == [("layer", 2), ("output", 2)]
    for one in found:
        assert one.influence == pytest.approx(1)
        assert one.own == pytest.approx(1)
        assert one.by_running == 0


@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed: int) -> None:
    batches = rows(2, 5)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Tanh()).double().train()
    for one in influence(model, batches, seed=seed):
        generator = np.random.default_rng(seed)
        j, k = int(generator.integers(5)), int(generator.integers(5))
        changed = batches[0].clone()
        changed[j] = batches[1][k]
        norm: Any = model[0]
        part = norm if one.of == "layer" else model
        before, after = (part(x).detach().numpy() for x in (batches[0], changed))
        squares = [
            (after[i][c] - before[i][c]) ** 2
            for i in range(5)
            for c in range(before.shape[1])
            if i != j
        ]
        scale = before.std()
        assert one.influence == pytest.approx(math.sqrt(sum(squares) / len(squares)) / scale)
        own = math.sqrt(float(((after[j] - before[j]) ** 2).mean()))
        assert one.own == pytest.approx(own / scale)
        assert one.by_running == 0


@pytest.mark.parametrize(
    "layer",
    [
        nn.GroupNorm(1, 3),
        FrozenBatchNorm2d(3),
    ],
    ids=["group", "frozen"],
)
def test_no_influence_without_batch_statistics(layer: nn.Module) -> None:
    model = nn.Sequential(layer, FrozenBatchNorm2d(3)).double()
    for one in influence(model, images(3)):
        assert one.influence == one.by_running == 0
        assert one.own is not None
        assert one.own > 0.1


def test_batch_renorm_within_its_limits_has_none() -> None:
    wide = limits.fixed(math.inf, math.inf)
    layer = BatchRenorm1d(3, limits=wide).double()
    for one in influence(layer, rows(3)):
        assert one.influence == pytest.approx(0, abs=1e-12)


def test_larger_batches_have_less() -> None:
    small, large = (
        influence(nn.BatchNorm1d(3).double(), rows(4, n), depth="deep")[0].influence
        for n in (4, 64)
    )
    assert small is not None
    assert large is not None
    assert 4 < small / large < 64  # about the ratio of the sizes, 16


def test_a_leak_of_another_kind_is_told_apart() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return y - y.mean(0)

    output, layer = influence(Mixing().double(), rows(3))
    assert layer.by_running == 0
    assert output.by_running is not None
    assert output.by_running > 0.01


def test_dict_batches_and_outputs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
            y = self.norm(x) * scale
            return {"y": y, "mean": y.mean(), "half": y[::2]}

    batches = [{"x": x, "scale": x.new_ones(len(x), 1)} for x in rows(3)]
    found = influence(Model().double(), batches)
    assert [one.of for one in found] == ["output", "layer"]
    assert found[0].influence == pytest.approx(found[1].influence)


@pytest.mark.parametrize(
    "batches",
    [rows(3, 1), [{"input": x, "other": x.new_ones(3)} for x in rows(2)]],
    ids=["single", "no common N"],
)
def test_batches_that_cannot_be_changed(batches: list) -> None:
    def forward(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["input"] if isinstance(batch, dict) else batch)

    model = nn.BatchNorm1d(3).double()
    with pytest.raises(ArgumentError, match=r"cross_example_influence was .* two examples or more"):
        influence(model, batches, forward=forward)
    notes = survey(model, batches, forward=forward).of(Note)
    assert "cross_example_influence" in [note.quantity for note in notes]


def test_batches_of_other_shapes_are_not_mixed() -> None:
    batches = [torch.randn(4, 3, 6 + i).double() for i in range(3)]
    found = influence(nn.BatchNorm1d(3).double(), batches)
    assert found[0].influence is not None
    assert found[0].influence > 0
