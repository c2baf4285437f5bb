"""Every way in which a channel can be ill, planted in one channel among healthy ones."""

import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from surveyed import FrozenBatchNorm2d, images, rows
from torch import Tensor, nn

from renorm import BatchRenorm1d, BatchRenorm2d
from renorm.measure import saving, survey
from renorm.measure.records import ChannelHealth

ILLS = {
    "bad_statistics", "bad_parameters", "constant", "dead", "negative", "eps_dominated",
    "saturated", "not_finite",
}  # fmt: skip


def health(model: nn.Module, batches: list) -> ChannelHealth:
    (found,) = survey(model, batches, quantities="channel_health").of(ChannelHealth)
    return found


def ills(found: ChannelHealth) -> dict[str, tuple[int, ...]]:
    """Those there are, with their channels."""
    return {key: value for key, value in asdict(found).items() if key in ILLS and value}


def planted(channel: int, change: Any) -> list[Tensor]:
    batches = images(4)
    for x in batches:
        x[:, channel] = change(x[:, channel])
    return batches


@pytest.mark.parametrize(
    "make", [nn.BatchNorm2d, BatchRenorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d]
)
def test_healthy(make: Any) -> None:
    found = health(make(3).double(), images(4))
    assert ills(found) == {}
    assert found.largest == pytest.approx(max(float(x.abs().max()) for x in images(4)))
    assert found.headroom is not None
    assert 0 < found.headroom < 1e-300


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (torch.ones_like, {"constant": (1,)}),
        (torch.zeros_like, {"constant": (1,)}),
        (lambda x: 3 + 1e-4 * x, {"eps_dominated": (1,)}),
        (lambda x: (1e6 * x).clamp(0, 6), {"saturated": (1,)}),
        (lambda x: torch.where(x > 6, x, 0), {"saturated": (1,)}),
        (lambda x: x.relu(), {}),
        (lambda x: torch.where(x > 5, torch.nan, x), {"not_finite": (1,)}),
        (lambda x: torch.where(x > 5, torch.inf, x), {"not_finite": (1,)}),
    ],
    ids=["ones", "zeros", "tiny", "clamped", "sparse", "half zeros", "nan", "inf"],
)
def test_inputs(change: Any, expected: dict) -> None:
    assert ills(health(nn.BatchNorm2d(3).double(), planted(1, change))) == expected


def test_constant_in_each_batch_alone_is_not_constant() -> None:
    batches = [torch.full((4, 1), float(i)).double() for i in range(4)]
    assert ills(health(nn.BatchNorm1d(1).double(), batches)) == {}


@pytest.mark.parametrize(
    ("weight", "bias", "expected"),
    [
        (0.0, 1.0, {"dead": (2,)}),
        (1e-4, 0.0, {"dead": (2,)}),
        (1.0, -20.0, {"negative": (2,)}),
        (-1.0, -20.0, {"negative": (2,)}),
        (1.0, 20.0, {}),
        (math.nan, 0.0, {"bad_parameters": (2,)}),
        (1.0, math.inf, {"bad_parameters": (2,)}),
    ],
)
def test_parameters(weight: float, bias: float, expected: dict) -> None:
    layer = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        layer.weight[2], layer.bias[2] = weight, bias
    assert ills(health(layer, images(4))) == expected


@pytest.mark.parametrize(
    ("buffer", "value"),
    [
        ("running_mean", math.nan),
        ("running_var", math.inf),
        ("running_var", -1.0),
    ],
)
@pytest.mark.parametrize("make", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_statistics(make: Any, buffer: str, value: float) -> None:
    layer = make(3).double()
    layer.get_buffer(buffer)[0] = value
    found = survey(layer, images(4))
    assert ills(found.of(ChannelHealth)[0]) == {"bad_statistics": (0,)}
    assert saving.from_lines(saving.to_lines(found)) == found


def test_outputs_by_hand() -> None:
    # mean 0, deviation 1, from -2 to 1: the largest output is weight * 1 + bias
    x = torch.tensor([[-2.0], [1.0], [1.0], [0.0]]).double()
    x = x / x.std(correction=0)
    top = float(x.max())
    for bias, expected in ((-top - 0.01, {"negative": (0,)}), (-top + 0.01, {})):
        layer = nn.BatchNorm1d(1, eps=1e-12).double()
        nn.init.constant_(layer.bias, bias)
        assert ills(health(layer, [x])) == expected


def test_half_precision_near_its_end() -> None:
    x = torch.tensor([[-4e4], [4e4], [0.0], [1.0]]).half()
    found = health(nn.BatchNorm1d(1).half(), [x])
    assert found.headroom == pytest.approx(4e4 / 65504, rel=1e-3)


def test_masked_values_are_not_looked_at() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = BatchRenorm1d(3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.norm(x, mask)

    mask = torch.rand(6, 5) < 0.6
    x = torch.ones(6, 3, 5).double()
    x[:, 1] = torch.randn(6, 5)
    garbage = x.masked_fill(~mask.unsqueeze(1), torch.nan)
    found = health(Masked().double(), [{"x": garbage, "mask": mask}])
    assert ills(found) == {"constant": (0, 2)}
    assert found.largest == pytest.approx(max(1.0, float(x[:, 1][mask].abs().max())))


def test_few_values_are_not_called_saturated() -> None:
    assert ills(health(nn.BatchNorm1d(3).double(), rows(6, 2))) == {}


def test_a_layer_that_is_not_called_has_its_state_looked_at() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
            nn.init.constant_(self.other.get_buffer("running_mean"), math.nan)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    found = survey(Model().double(), rows(2)).of(ChannelHealth, "other")
    assert ills(found[0]) == {"bad_statistics": (0, 1, 2)}
    assert found[0].largest is None
