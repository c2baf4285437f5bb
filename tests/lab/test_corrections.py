"""r and d along a run: what is kept of them, and that looking changes nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from renorm import BatchRenorm1d, limits
from renorm.lab import corrections, training
from renorm.lab.corrections import monitor_of, pooled
from renorm.measure import Observation
from renorm.report.records import Specification, from_line, to_line

SHORT = Specification("digits", "convnet", "batch_renorm", "microbatch", 0, 24, 0.1, 32, 4)


@pytest.mark.parametrize("condition", ["microbatch", "accumulation"])
def test_a_run_has_them_and_is_else_the_same(
    condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specification = replace(SHORT, condition=condition)
    observed = training.run(specification)
    monkeypatch.setattr(corrections, "monitor_of", lambda model, steps: None)
    assert training.run(specification) == replace(observed, corrections=())
    assert [one.step for one in observed.corrections] == list(range(0, 24, 2))
    bounds = limits.over(24)
    for one in observed.corrections:
        assert (one.r_max, one.d_max) == bounds(one.step)
        assert list(one.r) == sorted(one.r)
        assert 1 / one.r_max * 0.99999 <= one.r[0] <= one.r[-1] <= one.r_max * 1.00001
        assert -one.d_max * 1.00001 <= one.d[0] <= one.d[-1] <= one.d_max * 1.00001
    assert observed.corrections[0].clipped_r == 1.0  # batch norm, to begin with
    assert observed.corrections[-1].clipped_r < 1.0
    assert from_line(to_line(observed)) == observed


@pytest.mark.parametrize("normalizer", ["batch_norm", "group_norm", "cross_iteration"])
def test_other_normalizers_have_none(normalizer: str) -> None:
    assert training.run(replace(SHORT, normalizer=normalizer, steps=5)).corrections == ()


@pytest.mark.parametrize(("steps", "times"), [(1, 1), (20, 20), (21, 11), (1000, 20)])
def test_a_run_is_observed_at_most_20_times(steps: int, times: int) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), BatchRenorm1d(3))
    monitor = monitor_of(model, steps)
    assert monitor is not None
    for _ in range(steps):
        model(torch.randn(2, 3))
        monitor.step()
    monitor.close()
    assert [one.layer for one in monitor.observations] == ["1"] * times


def an_observation(step: int, r: Any, d: Any, clipped: tuple[float, float]) -> Observation:
    rows, shifts = (np.array([values], dtype=np.float32) for values in (r, d))
    return Observation(step, "layer", rows, shifts, 3.0, 5.0, *clipped, gap=0.0)


def test_channels_of_all_layers_count_alike() -> None:
    small = an_observation(3, [1.0], [-2.0], (1.0, 0.0))
    large = an_observation(3, [2.0, 2.0, 3.0], [0.0, 0.5, 1.0], (0.0, 1.0))
    (one,) = pooled([small, large])
    assert one.step == 3
    assert one.r[2] == 2.0
    assert one.d[2] == 0.25
    assert (one.clipped_r, one.clipped_d) == (0.25, 0.75)


def test_steps_of_a_run_that_diverges_are_left_out() -> None:
    fine = an_observation(0, [1.0], [0.0], (0.0, 0.0))
    broken = an_observation(2, [np.nan], [0.0], (0.0, 0.0))
    assert [one.step for one in pooled([fine, broken])] == [0]
