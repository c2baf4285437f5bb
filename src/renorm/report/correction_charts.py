"""The corrections r and d of batch renorm along the training, with the schedule of their limits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from renorm.report.comparison import Comparison
from renorm.report.palette import Style, styles
from renorm.report.panels import Chart, Panel, Trace, band, safe
from renorm.report.records import Corrections, Record
from renorm.report.wording import title

INNER, OUTER = "40", "22"
TICKS = (0.1, 0.2, 0.33, 0.5, 1, 2, 3, 5, 10)
ABOUT = (
    "over all channels of all layers, after clipping. The line is the median, the bands hold the "
    "middle 50 % and 90 % of the channels; quantiles are averaged over seeds. Dashed: the limits "
    "of the schedule,"
)


@dataclass(frozen=True)
class Correction:
    """How one of the two corrections is read from ``Corrections``.

    Args:
        letter: r or d.
        heading, about: of its chart.
        values: its quantiles.
        clipped: the part at a limit.
        limits: the upper and the lower one.
    """

    letter: str
    heading: str
    about: str
    values: Callable[[Corrections], tuple[float, ...]]
    clipped: Callable[[Corrections], float]
    limits: Callable[[Corrections], tuple[float, float]]


SCALE = Correction(
    "r",
    "Scale correction r",
    f"r = sigma_batch / sigma, 1 for none, {ABOUT} r_max and 1/r_max.",
    lambda one: one.r,
    lambda one: one.clipped_r,
    lambda one: (one.r_max, 1 / one.r_max),
)
SHIFT = Correction(
    "d",
    "Shift correction d",
    f"d = (mean_batch - mean) / sigma, 0 for none, {ABOUT} plus and minus d_max.",
    lambda one: one.d,
    lambda one: one.clipped_d,
    lambda one: (one.d_max, -one.d_max),
)


def chart(correction: Correction, comparison: Comparison, records: Sequence[Record]) -> Chart:
    """One correction, a panel a condition; without panels where no run has corrections.

    Args:
        correction: which.
        comparison: gives the order.
        records: of its runs.
    """
    looks = styles(comparison.normalizers)
    corrected = [one for one in records if one.corrections]
    panels = []
    for condition in comparison.conditions:
        here = [one for one in corrected if one.specification.condition == condition]
        courses = {
            normalizer: _course(
                [one.corrections for one in here if one.specification.normalizer == normalizer]
            )
            for normalizer in comparison.normalizers
        }
        traces, told = [], []
        for normalizer, course in courses.items():
            if course:
                traces += _traces(correction, normalizer, course, looks[normalizer])
                told.append(f"{title(normalizer)}, {_told(correction, course[-1])}")
        if traces:
            axes = {
                "xaxis": {"title": {"text": "training step"}, "rangemode": "tozero"},
                "yaxis": _axis(correction, corrected),
            }
            alternative = f"{correction.heading} in {condition} at the end: {'; '.join(told)}."
            panels.append(Panel(condition, alternative, {"data": traces, "layout": axes}))
    drawn = {one.specification.normalizer for one in corrected}
    return Chart(
        f"correction-{correction.letter}",
        correction.heading,
        correction.about,
        tuple(panels),
        tuple(name for name in comparison.normalizers if name in drawn),
    )


def _course(runs: Sequence[Sequence[Corrections]]) -> list[Corrections]:
    """The corrections at each step, averaged over runs."""
    steps: dict[int, list[Corrections]] = {}
    for run in runs:
        for one in run:
            steps.setdefault(one.step, []).append(one)
    return [_average(step, steps[step]) for step in sorted(steps)]


def _average(step: int, ones: Sequence[Corrections]) -> Corrections:
    def mean(of: Callable[[Corrections], float]) -> float:
        return math.fsum(map(of, ones)) / len(ones)

    def quantiles(of: Callable[[Corrections], tuple[float, ...]]) -> Any:
        columns = zip(*map(of, ones), strict=True)
        return tuple(math.fsum(values) / len(ones) for values in columns)

    return Corrections(
        step,
        mean(lambda one: one.r_max),
        mean(lambda one: one.d_max),
        quantiles(lambda one: one.r),
        quantiles(lambda one: one.d),
        mean(lambda one: one.clipped_r),
        mean(lambda one: one.clipped_d),
    )


def _traces(
    correction: Correction, normalizer: str, course: Sequence[Corrections], look: Style
) -> list[Trace]:
    steps = [one.step for one in course]
    values = [correction.values(one) for one in course]
    lowest, low, median, high, highest = map(list, zip(*values, strict=True))
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": safe(title(normalizer)),
        "x": steps,
        "y": median,
        "customdata": [[*correction.values(one), correction.clipped(one)] for one in course],
        "line": {"color": look.colour, "width": 2},
        "hovertemplate": "median %{y:.3f}; 50 %: %{customdata[1]:.3f} to %{customdata[3]:.3f}; "
        "90 %: %{customdata[0]:.3f} to %{customdata[4]:.3f}; at a limit: %{customdata[5]:.1%}",
    }
    schedule = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": steps,
            "y": list(limit),
            "line": {"color": "var(--ink)", "dash": "dash", "width": 1},
            "hoverinfo": "skip",
        }
        for limit in zip(*map(correction.limits, course), strict=True)
    ]
    return [
        band(steps, lowest, highest, look.colour + OUTER),
        band(steps, low, high, look.colour + INNER),
        *schedule,
        line,
    ]


def _axis(correction: Correction, records: Sequence[Record]) -> dict[str, Any]:
    """The same in all panels; of r logarithmic, so that r and 1/r are as far from 1."""
    every = [one for record in records for one in record.corrections]
    values = [
        abs(value) for one in every for value in (*correction.values(one), *correction.limits(one))
    ]
    if correction is SHIFT:
        edge = 1.08 * max(*values, 0.1)
        return {"range": [-edge, edge], "title": {"text": "d, in sigma"}}
    edge = 1.08 * max(abs(math.log10(value)) for value in (*values, 1.1) if value > 0)
    ticks = [value for value in TICKS if abs(math.log10(value)) <= edge]
    return {"type": "log", "range": [-edge, edge], "tickvals": ticks, "title": {"text": "r"}}


def _told(correction: Correction, last: Corrections) -> str:
    lowest, _, median, _, highest = correction.values(last)
    return (
        f"median {median:.2f}, 90 % of the channels between {lowest:.2f} and {highest:.2f}, "
        f"{correction.clipped(last):.0%} at a limit"
    )
