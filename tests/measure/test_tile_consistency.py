"""Tiles against whole images."""

import math
from typing import Any

import pytest
import torch
from surveyed import images, rows
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.measure import survey
from renorm.measure.records import Note, TileConsistency


def tiles(model: nn.Module, batches: list, **options: Any) -> TileConsistency:
    found = survey(model, batches, quantities="tile_consistency", **options)
    return found.of(TileConsistency)[0]


def dense(*more: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *more, nn.Conv2d(4, 2, 1)
    ).double()


def test_against_loops() -> None:
    model, (x,) = dense().eval(), images(1)
    with torch.no_grad():
        whole = model(x)
    squares, inside = [], []
    for top in (0, 4):
        for left in (0, 4):
            with torch.no_grad():
                part = model(x[:, :, top : top + 4, left : left + 4])
            for i in range(4):
                for j in range(4):
                    apart = part[..., i, j] - whole[..., top + i, left + j]
                    values = [float(v) ** 2 for v in apart.flatten()]
                    squares += values
                    if abs(top + i - 3.5) >= 2 and abs(left + j - 3.5) >= 2:
                        inside += values
    scale = float(whole.std(correction=0))
    found = tiles(model, [x])
    assert found.tile == (4, 4)
    assert found.difference == pytest.approx(math.sqrt(sum(squares) / len(squares)) / scale)
    assert found.interior == pytest.approx(0, abs=1e-12)
    assert inside == pytest.approx([0] * len(inside), abs=1e-24)
    assert found.difference is not None
    assert found.difference > 0.01


def test_batch_statistics_are_not_consistent() -> None:
    found = tiles(dense(), [x * torch.linspace(0.5, 2, 8) for x in images(2)])
    assert found.interior == pytest.approx(0, abs=1e-12)
    assert found.interior_by_batch is not None
    assert found.interior_by_batch > 0.01


def test_layers_that_normalize_by_their_input_in_eval_are_told() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    found = tiles(dense(norm), images(2))
    assert found.interior is not None
    assert found.interior > 0.01


def test_outputs_of_another_size_and_targets_of_the_images() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 2, stride=2)).double()
    batches = [(x, x[:, 0] > 0) for x in images(2)]
    found = tiles(model, batches, depth="deep")
    assert (found.batches, found.tile) == (2, (4, 4))
    assert found.difference == pytest.approx(0, abs=1e-12)


def test_large_images_have_tiles_of_a_multiple_of_32() -> None:
    x = torch.randn(1, 3, 96, 90, dtype=torch.float64)
    assert tiles(dense(), [x]).tile == (32, 32)


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (nn.BatchNorm1d(3), rows(2), "cuts images into tiles"),
        (
            nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            images(2),
            "cuts images into tiles",
        ),
        (
            nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 192)),
            images(2),
            "cuts images into tiles",
        ),
    ],
    ids=["rows", "classes", "flat"],
)
def test_what_is_not_dense(model: Any, batches: list, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        tiles(model.double(), batches)
    assert "tile_consistency" in [n.quantity for n in survey(model, batches).of(Note)]


def test_a_model_that_takes_one_size_alone() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + torch.ones(8, 8)

    model = Fixed().double()
    with pytest.raises(ArgumentError, match=r"does not run on tiles: RuntimeError: The size"):
        tiles(model, images(2))
    assert survey(model, images(2)).complete


@pytest.mark.parametrize("size", [9, 15, 72, 100])
def test_tiles_that_do_not_reach_the_end(size: int) -> None:
    """Their far side is a cut as well, where convolutions see zeros for what is beyond."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, size, 8, generator=generator, dtype=torch.float64) + 3
    found = tiles(dense(), [x])
    assert 2 * found.tile[0] < size
    assert found.interior == pytest.approx(0, abs=1e-12)
    assert found.difference is not None
    assert found.difference > 0.01
