"""How names and figures are written, the same in tables, sentences and charts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from renorm.report.statistics import Estimate

FIGURES = 4
MOST_DECIMALS = 8


@dataclass(frozen=True)
class Unit:
    """How the scores of one metric are written.

    Estimates hold percentages where ``percent``, the metric's own units elsewhere.

    Args:
        metric: what the scores are called.
        percent: whether scores are fractions, shown as percentages.
        decimals: of a score, so that the figures of a table line up.

    >>> accuracy = Unit("accuracy", True)
    >>> accuracy.figure(Estimate(97.25, 0.44, 3)), accuracy.size(Estimate(-10.4, 1.1, 3))
    ('97.2 ± 0.4', '10.4 ± 1.1 points')
    """

    metric: str
    percent: bool
    decimals: int = 1

    def shown(self, score: float) -> float:
        """A score of a record as it is shown."""
        return 100 * score if self.percent else score

    @property
    def heading(self) -> str:
        """The metric, with % where that is its unit."""
        return f"{self.metric}, %" if self.percent else self.metric

    def number(self, value: float) -> str:
        """One value; no minus before a zero."""
        return f"{value:z.{self.decimals}f}"

    def figure(self, value: Estimate | None, signed: bool = False) -> str:
        """``mean ± half width``; the mean alone without an interval; ``-`` for None."""
        if value is None:
            return "-"
        decimals = self._enough(value)
        mean = f"{value.mean:{'+' if signed else ''}z.{decimals}f}"
        return mean if value.half_width is None else f"{mean} ± {value.half_width:.{decimals}f}"

    def size(self, difference: Estimate, signed: bool = False) -> str:
        """How large a difference is, with its unit."""
        value = difference
        if not signed:
            value = Estimate(abs(difference.mean), difference.half_width, difference.count)
        return self.figure(value, signed) + (" points" if self.percent else "")

    def _enough(self, value: Estimate) -> int:
        """Decimals that do not round a clear difference to 0."""
        decimals = self.decimals
        while value.clear and not round(value.mean, decimals) and decimals < MOST_DECIMALS:
            decimals += 1
        return decimals


def unit_for(metric: str, percent: bool, scores: Iterable[float]) -> Unit:
    """The unit of a metric: one decimal for percentages, four figures of the largest score else.

    >>> unit_for("return", False, [-312.5, 20.0]).decimals, unit_for("loss", False, []).decimals
    (1, 3)
    """
    if percent:
        return Unit(metric, True)
    largest = max((abs(score) for score in scores), default=1.0) or 1.0
    digits = FIGURES - 1 - math.floor(math.log10(largest))
    return Unit(metric, False, min(max(digits, 0), MOST_DECIMALS))


def title(name: str) -> str:
    """A name as it is written in text; its options stay as they are given.

    >>> title("batch_renorm"), title("group_norm(group_size=4)")
    ('batch renorm', 'group norm(group_size=4)')
    """
    base, bracket, options = name.partition("(")
    return f"{base.replace('_', ' ')}{bracket}{options}"


def in_points(value: Estimate) -> str:
    """``mean ± half width`` of percentages; the mean alone where there is no interval.

    >>> in_points(Estimate(97.25, 0.44, 3)), in_points(Estimate(5.0, None, 1))
    ('97.2 ± 0.4', '5.0')
    """
    return Unit("", True).figure(value)


def listed(parts: Sequence[str]) -> str:
    """Parts as in a sentence.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def sentence(text: str) -> str:
    """A text with a capital at its start and a full stop at its end."""
    return f"{text[:1].upper()}{text[1:]}."


def counted(count: int, word: str) -> str:
    """A number with its noun.

    >>> counted(1, "seed"), counted(2, "seed")
    ('1 seed', '2 seeds')
    """
    return f"{count} {word}{'' if count == 1 else 's'}"


def last_line(traceback: str) -> str:
    """Type and text of the error at the end of a traceback."""
    lines = [line for line in traceback.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"
