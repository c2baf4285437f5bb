"""Means over seeds with their uncertainty."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from renorm.errors import ArgumentError, MissingExtraError

CONFIDENCE = 0.95
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean and the half width of its interval.

    Args:
        mean: of the values.
        half_width: of the interval; None for one value, which says nothing about spread.
        count: how many values.
    """

    mean: float
    half_width: float | None
    count: int

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside the interval; False where there is no interval."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float], comparisons: int = 1) -> Estimate:
    """The mean of ``values`` with Student's 95 % interval.

    ``half_width = t * s / sqrt(n)``, with s the standard deviation by n - 1 and t the 97.5 %
    quantile of Student's distribution with n - 1 degrees of freedom.

    Args:
        values: independent repetitions, at least one.
        comparisons: intervals that are looked at together, at least 1. All of them hold with
            95 % or more (Bonferroni): each is as wide as 5 % over their number asks for.

    Raises:
        ArgumentError: there are no values.
        MissingExtraError: scipy, which has the quantile, is not installed.

    >>> got = estimate([1.0, 2.0, 3.0])
    >>> got.mean, round(got.half_width, 6), got.count
    (2.0, 2.484138, 3)
    """
    if not values:
        raise ArgumentError("A mean needs at least one value, got none.")
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Estimate(mean, None, 1)
    spread = statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, _student_quantile(count - 1, comparisons) * spread, count)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """The mean difference ``ours - theirs`` over the seeds that both have; None without one.

    Pairs share initial weights and data order, so what these contribute cancels.

    >>> paired({0: 5.0, 1: 6.0, 2: 9.0}, {0: 4.0, 2: 8.0})
    Estimate(mean=1.0, half_width=0.0, count=2)
    """
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    return estimate([ours[seed] - theirs[seed] for seed in common])


def median_ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    """The median of ``ours / theirs`` over the seeds that both have; None without one.

    >>> median_ratio({0: 3.0, 1: 2.0, 2: 9.0}, {0: 2.0, 1: 2.0, 2: 3.0})
    1.5
    """
    ratios = [ours[seed] / theirs[seed] for seed in ours.keys() & theirs.keys() if theirs[seed]]
    return statistics.median(ratios) if ratios else None


def seeds_needed(difference: Estimate) -> int | None:
    """Roughly how many seeds would put 0 outside the interval, were mean and spread as seen.

    The smallest n with ``t(n - 1) * s / sqrt(n) < |mean|``, s the standard deviation seen. Mean
    and spread are themselves estimates, from two seeds very poor ones.

    Args:
        difference: a mean difference, usually one that is not clear.

    Returns:
        At least 2; None where there is no interval to start from, or above 1,000.

    >>> seeds_needed(estimate([1.0, 3.0])), seeds_needed(estimate([-1.0, 1.0]))
    (5, None)
    """
    if difference.half_width is None or difference.mean == 0:
        return None
    quantile = _student_quantile(difference.count - 1)
    spread = difference.half_width * math.sqrt(difference.count) / quantile
    for count in range(2, MOST_SEEDS + 1):
        if _student_quantile(count - 1) * spread / math.sqrt(count) < abs(difference.mean):
            return count
    return None


def _student_quantile(degrees: int, comparisons: int = 1) -> float:
    try:
        from scipy.special import stdtrit
    except ImportError as error:
        raise MissingExtraError(
            'Intervals need scipy, which is not installed. Run: pip install "renorm[lab]"'
        ) from error
    return float(stdtrit(degrees, 1 - (1 - CONFIDENCE) / (2 * comparisons)))
