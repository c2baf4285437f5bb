"""The batch norm paper's task: what it measures of the inputs of a layer of sigmoids."""

import pytest
import torch
from torch import nn

from renorm.lab.tasks import binary

UNITS = 3


def watched(steps: int, planned: int, shift: float = 0.0) -> dict[str, float]:
    """Figures of units whose inputs are -1 to 1 evenly, moved on by ``shift`` at each step."""
    layer, watch = nn.Sigmoid(), binary._Watch(planned)
    layer.register_forward_pre_hook(watch)
    values = torch.linspace(-1, 1, 201)[:, None].expand(-1, UNITS)
    for step in range(steps):
        layer(values + shift * step)
        layer.eval()
        layer(values + 1e6)  # a test does not count
        layer.train()
    return dict(watch.figures())


def test_quantiles_of_what_does_not_change() -> None:
    found = watched(40, 40)
    assert found["drift"] == 0
    assert len(found) == 1 + 20 * 3
    for percent, value in ((15, -0.7), (50, 0.0), (85, 0.7)):
        for at in (5, 50, 100):
            assert found[f"quantile {percent} at {at} %"] == pytest.approx(value, abs=1e-6)


def test_drift_is_the_deviation_along_the_run_over_the_spread() -> None:
    # one step a look: all quantiles go 0, 1, ..., 19 times 0.01
    expected = 0.01 * torch.arange(20.0).std().item() / 1.4
    assert watched(20, 20, shift=0.01)["drift"] == pytest.approx(expected, rel=1e-4)


def test_a_run_that_broke_off_has_figures_of_its_part() -> None:
    found = watched(21, 40)
    assert "quantile 50 at 50 %" in found
    assert "quantile 50 at 55 %" not in found
    assert watched(3, 40) == {}
