"""Schedules: exact corners, monotone, printable, picklable, JSON and back, no host reads."""

import itertools
import json
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from renorm import limits
from renorm.errors import ArgumentError
from renorm.limits import Limits, Ramp

PRESETS = {
    "paper": limits.paper(),
    "over": limits.over(1_234),
    "over one step": limits.over(1),
    "fixed": limits.fixed(1.7, 0.4),
    "unbounded": limits.fixed(math.inf, math.inf),
    "batch_norm": limits.batch_norm(),
    "crossq": limits.crossq(),
    "latent_replay": limits.latent_replay(),
}
presets = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


def test_paper_corners() -> None:
    schedule = limits.paper()
    assert [schedule(s) for s in (0, 5_000, 25_000, 40_000, 10**7)] == [
        (1.0, 0.0),
        (1.0, 0.0),
        (1 + 2 * 20_000 / 35_000, 5.0),
        (3.0, 5.0),
        (3.0, 5.0),
    ]
    assert schedule(5_001)[0] > 1
    assert schedule(5_001)[1] > 0
    assert schedule(39_999)[0] < 3
    assert schedule(24_999)[1] < 5


def test_over_scales_the_paper() -> None:
    assert limits.over(100_000) == limits.paper()
    assert limits.over(2_000)(100) == (1.0, 0.0)
    assert limits.over(2_000)(800) == (3.0, 5.0)


def test_crossq_switches_at_once() -> None:
    assert limits.crossq()(99_999) == (1.0, 0.0)
    assert limits.crossq()(100_000) == (3.0, 5.0)
    assert limits.crossq(7)(6) == (1.0, 0.0)
    assert limits.crossq(7)(7) == limits.crossq(0)(0) == (3.0, 5.0)
    for now, value in ((99_999, (1.0, 0.0)), (100_000, (3.0, 5.0))):
        r_max, d_max = limits.crossq()(torch.tensor(now))
        assert (float(r_max), float(d_max)) == value


def test_latent_replay_opens_per_example() -> None:
    r_max, d_max = limits.latent_replay(batch_size=64)(10)
    # the corners are rounded up to whole steps
    assert r_max == pytest.approx(1 + 4.1e-5 * 64 * 10, rel=1e-3)
    assert d_max == pytest.approx(4.1e-5 * 64 * 10, rel=0.02)
    assert limits.latent_replay(64)(10**6) == (1.25, 0.5)


@presets
def test_tensor_and_array_steps_give_the_same_and_exact_corners(preset: Limits) -> None:
    for i, ramp in enumerate((preset.r_max, preset.d_max)):
        corners = {0, ramp.start, ramp.end}
        for now in sorted({c + delta for c in corners for delta in (0, 1)}):
            exact = preset(now)[i]
            for step in (torch.tensor(now), np.asarray(now)):
                got = float(preset(step)[i])
                if now in corners:
                    assert got in (exact, float(np.float32(exact)))
                assert got == pytest.approx(exact, rel=1e-6)


@presets
@given(steps=st.lists(st.integers(0, 200_000), min_size=2, max_size=20))
def test_monotone_and_within_bounds(preset: Limits, steps: list[int]) -> None:
    for read in (preset, lambda s: tuple(float(v) for v in preset(torch.tensor(s)))):
        values = [read(s) for s in sorted(steps)]
        for (r, d), (r_next, d_next) in itertools.pairwise(values):
            assert preset.r_max.low <= r <= r_next <= preset.r_max.high
            assert preset.d_max.low <= d <= d_next <= preset.d_max.high


@given(
    low=st.floats(0, 10),
    width=st.floats(0, 10),
    start=st.integers(0, 1000),
    length=st.integers(0, 1000),
)
def test_any_ramp_is_exact_at_its_corners(
    low: float, width: float, start: int, length: int
) -> None:
    ramp = Ramp(low, low + width, start, start + length)
    assert ramp(start + length) == ramp.high
    assert ramp(start + length + 1) == ramp.high
    if length:
        assert ramp(start) == low
    assert float(ramp(torch.tensor(start + length))) in (ramp.high, float(np.float32(ramp.high)))


@presets
def test_prints_pickles_and_goes_through_json(preset: Limits) -> None:
    assert str(preset).startswith("r_max ")
    assert pickle.loads(pickle.dumps(preset)) == preset
    assert Limits.from_json(preset.to_json()) == preset
    json.loads(preset.to_json(), parse_constant=pytest.fail)  # strict JSON, no Infinity
    namespace = {"Limits": Limits, "Ramp": Ramp, "inf": math.inf}
    assert eval(repr(preset), namespace) == preset
    assert hash(preset) == hash(Limits.from_json(preset.to_json()))


def test_presets_print_what_they_do() -> None:
    assert str(limits.paper()) == (
        "r_max 1 -> 3 over steps 5000 to 40000, d_max 0 -> 5 over steps 5000 to 25000"
    )
    assert str(limits.crossq()) == "r_max 1 -> 3 at step 100000, d_max 0 -> 5 at step 100000"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: limits.fixed(0.9, 1), "r_max .* at least 1, got 0.9"),
        (lambda: limits.fixed(1.5, -1), "d_max .* at least 0, got -1.0"),
        (lambda: limits.fixed(math.nan, 1), "must not fall, got low=nan"),
        (lambda: Ramp(2, 1), "must not fall, got low=2 and high=1"),
        (lambda: Ramp(1, math.inf, 0, 10), "no values in between"),
        (lambda: Ramp(1, 2, 10, 5), "0 <= start <= end, got start=10, end=5"),
        (lambda: Ramp(1, 2, 0, 5.5), "step counts, got start=0, end=5.5"),  # type: ignore[arg-type]
        (lambda: limits.over(0), "at least 1, got 0"),
        (lambda: limits.over(1e5), "at least 1, got 100000.0"),  # type: ignore[arg-type]
        (lambda: limits.latent_replay(0), "at least 1, got 0"),
        (lambda: Limits.from_json("[1]"), "a JSON object with the keys r_max and d_max"),
        (lambda: Limits.from_json('{"r_max": {}}'), "low, high, start, end; got"),
        (lambda: Limits.from_json("{"), "Write it with Limits.to_json"),
    ],
)
def test_bad_schedules_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
