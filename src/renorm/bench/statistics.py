"""Geometric means, and whether a target is met."""

import math
from collections.abc import Sequence

from renorm.bench.registry import Target


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean for ratios: that of a ratio and of its inverse is 1.

    >>> round(geometric_mean([0.5, 2.0]), 12)
    1.0
    """
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def met(value: float, target: float, at_least: bool = False) -> bool:
    """Whether a value, as shown with two decimals, is on the right side of its target.

    >>> met(0.452, 0.45), met(0.456, 0.45), met(7.5, 8, at_least=True)
    (True, False, False)
    """
    shown = round(value, 2)
    return shown >= target if at_least else shown <= target


def verdicts(ratios: dict[str, float], target: Target, steady: bool = True) -> list[str]:
    """A line on the geometric mean and one on the worst shape, each with its target.

    Args:
        ratios: by shape; at least one.
        target: of the suite.
        steady: False if other work disturbed the measurement, so that nothing can be judged.
    """
    mean = geometric_mean(list(ratios.values()))
    worst = (min if target.at_least else max)(ratios, key=lambda shape: ratios[shape])
    return [
        judged("geometric mean", mean, target.mean, target.at_least, steady),
        judged(f"worst, {worst},", ratios[worst], target.worst, target.at_least, steady),
    ]


def judged(
    what: str, value: float, target: float | None, at_least: bool = False, steady: bool = True
) -> str:
    """One line: the value, and the target beside it.

    >>> judged("geometric mean", 0.5, 0.45)
    'geometric mean 0.50 (target at most 0.45: not met)'
    """
    if target is None:
        return f"{what} {value:.2f}"
    bound = "at least" if at_least else "at most"
    verdict = "not judged"
    if steady:
        verdict = "met" if met(value, target, at_least) else "not met"
    return f"{what} {value:.2f} (target {bound} {target:g}: {verdict})"
