import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from renorm.errors import ArgumentError, MissingExtraError
from renorm.report.statistics import Estimate, estimate, median_ratio, paired, seeds_needed

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


@given(VALUES)
def test_interval_is_that_of_scipy(values: list[float]) -> None:
    got = estimate(values)
    assert got.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert got.half_width is not None
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    expected = stats.t.ppf(0.975, len(values) - 1) * error
    assert got.half_width == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert got.count == len(values)


def test_by_hand() -> None:
    # s = 1, t(0.975, 2) = 4.30265, so the half width is 4.30265 / sqrt(3)
    assert estimate([1.0, 2.0, 3.0]).half_width == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_intervals_that_are_looked_at_together_are_wider() -> None:
    values = [1.0, 2.0, 3.0, 5.0]
    single, five = estimate(values), estimate(values, comparisons=5)
    assert (single.mean, single.count) == (five.mean, five.count)
    error = np.std(values, ddof=1) / 2
    assert five.half_width == pytest.approx(stats.t.ppf(0.995, 3) * error, rel=1e-9)


def test_one_value_has_no_interval_and_nothing_is_clear() -> None:
    assert estimate([5.0]) == Estimate(5.0, None, 1)
    assert not estimate([5.0]).clear


def test_no_value_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least one value"):
        estimate([])


@pytest.mark.parametrize(("mean", "clear"), [(1.0, False), (-1.1, True), (1.1, True), (0.0, False)])
def test_clear_means_that_zero_is_outside(mean: float, clear: bool) -> None:
    assert Estimate(mean, 1.0, 3).clear is clear


@given(VALUES, st.floats(-10, 10))
def test_pairing_cancels_what_the_seeds_share(values: list[float], shift: float) -> None:
    theirs = dict(enumerate(values))
    ours = {seed: value + shift for seed, value in theirs.items()}
    got = paired(ours, theirs)
    assert got is not None
    assert got.mean == pytest.approx(shift, abs=1e-9)
    assert got.half_width == pytest.approx(0, abs=1e-9)


def test_only_common_seeds_are_paired() -> None:
    assert paired({0: 1.0, 1: 5.0}, {1: 2.0, 2: 9.0}) == Estimate(3.0, None, 1)
    assert paired({0: 1.0}, {1: 2.0}) is None


def test_seeds_needed_are_the_first_that_would_put_0_outside() -> None:
    seen = estimate([-1.0, 2.0, 0.5])
    needed = seeds_needed(seen)
    assert needed is not None
    spread = np.std([-1.0, 2.0, 0.5], ddof=1)
    halves = [stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n) for n in (needed - 1, needed)]
    assert halves[0] >= seen.mean > halves[1]


@pytest.mark.parametrize(
    "seen", [estimate([1.0]), estimate([1.0, -1.0]), estimate([100.0, -99.9])], ids=str
)
def test_no_number_of_seeds_is_named_without_spread_or_beyond_reason(seen: Estimate) -> None:
    assert seeds_needed(seen) is None


def test_a_ratio_is_over_common_seeds_with_a_time() -> None:
    assert median_ratio({0: 3.0, 1: 4.0, 2: 9.0}, {0: 2.0, 1: 0.0, 3: 1.0}) == 1.5
    assert median_ratio({0: 3.0}, {1: 2.0}) is None


def test_without_scipy_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(MissingExtraError, match=r'pip install "renorm\[lab\]"'):
        estimate([1.0, 2.0])
