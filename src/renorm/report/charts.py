"""Charts as plain data for plotly.js: scores, learning curves, corrections; a panel a condition.

Colours are written ``var(--NAME)`` and looked up in the page's style sheet when a chart is drawn,
so that they follow the reader's light or dark scheme.
"""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from renorm.report.comparison import Comparison
from renorm.report.palette import Style, styles
from renorm.report.records import Corrections, Record
from renorm.report.statistics import Estimate, estimate
from renorm.report.wording import listed, title

BAND, WIDE_BAND = "40", "22"


@dataclass(frozen=True)
class Panel:
    """One chart.

    Args:
        heading: above it.
        alternative: what it shows, for a reader who does not see it.
        figure: ``data`` and ``layout`` of plotly.js.
    """

    heading: str
    alternative: str
    figure: dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """Panels of one kind, on common axes.

    Args:
        name: of the section, a word.
        heading: of the section.
        about: how to read it.
        panels: usually one a condition.
    """

    name: str
    heading: str
    about: str
    panels: tuple[Panel, ...]


def charts(comparison: Comparison, records: Sequence[Record]) -> tuple[Chart, ...]:
    """All charts for which there is something to draw.

    Args:
        comparison: gives the order and the unit.
        records: of its runs.
    """
    looks = styles(comparison.normalizers)
    found = (
        _scores(comparison, records, looks),
        _curves(comparison, records, looks),
        _corrections(comparison, records, looks),
    )
    return tuple(chart for chart in found if chart.panels)


def _scores(comparison: Comparison, records: Sequence[Record], looks: dict[str, Style]) -> Chart:
    unit = comparison.unit
    done = [one for one in records if one.score is not None]
    span = _span([unit.shown(one.score) for one in done if one.score is not None], comparison)
    panels = []
    for condition in comparison.conditions:
        cells = [one for one in comparison.cells if one.condition == condition and one.score]
        traces: list[dict[str, Any]] = []
        for cell in cells:
            look, mean = looks[cell.normalizer], cell.score
            seeds = [
                unit.shown(one.score)
                for one in done
                if one.score is not None and _place(one) == (condition, cell.normalizer)
            ]
            traces += [_dots(cell.normalizer, seeds, look), _interval(cell.normalizer, mean, look)]
        if traces:
            figures = [f"{title(one.normalizer)} {unit.figure(one.score)}" for one in cells]
            alternative = f"{unit.heading} in {condition}: {listed(figures)}."
            layout = {
                "xaxis": {"title": {"text": _safe(unit.heading)}, "range": span},
                "yaxis": {
                    "type": "category",
                    "autorange": "reversed",
                    "automargin": True,
                },
                "height": 80 + 34 * len(cells),
                "hovermode": "closest",
            }
            panels.append(Panel(condition, alternative, {"data": traces, "layout": layout}))
    about = "Mean and 95 % interval of each normalizer; the faint dots are single seeds."
    return Chart("scores", "Scores", about, tuple(panels))


def _dots(normalizer: str, values: Sequence[float], look: Style) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(values),
        "y": [_safe(title(normalizer))] * len(values),
        "marker": {"color": look.colour, "opacity": 0.35, "size": 7, "symbol": look.symbol},
        "hoverinfo": "skip",
    }


def _interval(normalizer: str, mean: Estimate | None, look: Style) -> dict[str, Any]:
    assert mean is not None
    width = mean.half_width or 0.0
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [mean.mean],
        "y": [_safe(title(normalizer))],
        "error_x": {"type": "data", "array": [width], "color": look.colour, "thickness": 2},
        "marker": {"color": look.colour, "size": 10, "symbol": look.symbol},
        "hovertemplate": "%{y}: %{x:.4~g}<extra></extra>",
    }


def _curves(comparison: Comparison, records: Sequence[Record], looks: dict[str, Style]) -> Chart:
    unit = comparison.unit
    means = {
        (condition, normalizer): _by_step(
            (step, unit.shown(score))
            for one in records
            if one.score is not None and _place(one) == (condition, normalizer)
            for step, score in one.curve
        )
        for condition in comparison.conditions
        for normalizer in comparison.normalizers
    }
    ends = [
        value.mean + sign * (value.half_width or 0.0)
        for curve in means.values()
        for value in curve.values()
        for sign in (-1, 1)
    ]
    span = _span(ends, comparison)
    panels = []
    for condition in comparison.conditions:
        traces, figures = [], []
        for normalizer in comparison.normalizers:
            curve = means[condition, normalizer]
            if curve:
                traces += _curve(normalizer, curve, looks[normalizer])
                figures.append(f"{title(normalizer)} ends at {unit.figure([*curve.values()][-1])}")
        if traces:
            layout = {
                "xaxis": {"title": {"text": "training step"}, "rangemode": "tozero"},
                "yaxis": {"title": {"text": _safe(unit.heading)}, "range": span},
            }
            alternative = f"{unit.heading} along the training in {condition}: {listed(figures)}."
            panels.append(Panel(condition, alternative, {"data": traces, "layout": layout}))
    about = (
        f"{unit.heading} in eval mode along the training: mean over seeds, the band is the 95 % "
        "interval. Runs that diverged or failed are left out."
    )
    return Chart("curves", "Learning curves", about, tuple(panels))


def _by_step(points: Iterable[tuple[int, float]]) -> dict[int, Estimate]:
    values: dict[int, list[float]] = {}
    for step, value in points:
        values.setdefault(step, []).append(value)
    return {step: estimate(values[step]) for step in sorted(values)}


def _curve(normalizer: str, curve: dict[int, Estimate], look: Style) -> list[dict[str, Any]]:
    steps = list(curve)
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": _safe(title(normalizer)),
        "x": steps,
        "y": [one.mean for one in curve.values()],
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "hovertemplate": "%{y:.4~g}",
    }
    low = [one.mean - (one.half_width or 0.0) for one in curve.values()]
    high = [one.mean + (one.half_width or 0.0) for one in curve.values()]
    return [_band(steps, low, high, look.colour + BAND), line]


def _corrections(
    comparison: Comparison, records: Sequence[Record], looks: dict[str, Style]
) -> Chart:
    panels = []
    with_any = [one for one in records if one.corrections]
    for letter, draw in (("r", _scale), ("d", _shift)):
        for condition in comparison.conditions:
            here = [one for one in with_any if one.specification.condition == condition]
            if not here:
                continue
            traces = []
            for normalizer in comparison.normalizers:
                mine = [one for one in here if one.specification.normalizer == normalizer]
                course = _course([one.corrections for one in mine])
                if course:
                    traces += draw(normalizer, course, looks[normalizer])
            last = [one.corrections[-1] for one in here]
            panels.append(Panel(f"{letter}, {condition}", _told(letter, condition, last), {
                "data": traces,
                "layout": {
                    "xaxis": {"title": {"text": "training step"}, "rangemode": "tozero"},
                    "yaxis": _axis(letter, with_any),
                },
            }))
    about = (
        "The scale correction r = σ_batch/σ (1 is none) and the shift correction "
        "d = (μ_batch − μ)/σ (0 is none) over all channels of all layers, after clipping. The line "
        "is the median, the bands hold the middle 50 % and 90 % of the channels; quantiles are "
        "averaged over seeds. Dashed: the limits of the schedule, 1/r_max to r_max and ±d_max."
    )
    return Chart("corrections", "Corrections of batch renorm", about, tuple(panels))


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
        return tuple(mean(lambda one: of(one)[place]) for place in range(5))

    return Corrections(
        step,
        mean(lambda one: one.r_max),
        mean(lambda one: one.d_max),
        quantiles(lambda one: one.r),
        quantiles(lambda one: one.d),
        mean(lambda one: one.clipped_r),
        mean(lambda one: one.clipped_d),
    )


def _scale(normalizer: str, course: Sequence[Corrections], look: Style) -> list[dict[str, Any]]:
    limits = [[one.r_max for one in course], [1 / one.r_max for one in course]]
    clipped = [one.clipped_r for one in course]
    return _quantiles(normalizer, course, [one.r for one in course], clipped, limits, look)


def _shift(normalizer: str, course: Sequence[Corrections], look: Style) -> list[dict[str, Any]]:
    limits = [[one.d_max for one in course], [-one.d_max for one in course]]
    clipped = [one.clipped_d for one in course]
    return _quantiles(normalizer, course, [one.d for one in course], clipped, limits, look)


def _quantiles(
    normalizer: str,
    course: Sequence[Corrections],
    values: Sequence[Sequence[float]],
    clipped: Sequence[float],
    limits: Sequence[Sequence[float]],
    look: Style,
) -> list[dict[str, Any]]:
    steps = [one.step for one in course]
    lowest, low, median, high, highest = zip(*values, strict=True)
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": _safe(title(normalizer)),
        "x": steps,
        "y": list(median),
        "customdata": [
            [one[0], one[1], one[3], one[4], part]
            for one, part in zip(values, clipped, strict=True)
        ],
        "line": {"color": look.colour, "width": 2},
        "hovertemplate": "median %{y:.3f}, 50 %: %{customdata[1]:.3f} to %{customdata[2]:.3f}, "
        "90 %: %{customdata[0]:.3f} to %{customdata[3]:.3f}, at a limit: %{customdata[4]:.1%}",
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
        for limit in limits
    ]
    return [
        _band(steps, lowest, highest, look.colour + WIDE_BAND),
        _band(steps, low, high, look.colour + BAND),
        *schedule,
        line,
    ]


def _band(
    steps: Sequence[int], low: Sequence[float], high: Sequence[float], colour: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*steps, *reversed(steps)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": colour,
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _axis(letter: str, records: Sequence[Record]) -> dict[str, Any]:
    """The axis of r (logarithmic, so that r and 1/r are alike) or of d, the same in all panels."""
    every = [one for record in records for one in record.corrections]
    if letter == "r":
        widest = max(max(one.r_max, *one.r, *(1 / r for r in one.r if r > 0)) for one in every)
        edge = 1.08 * math.log10(max(widest, 1.1))
        ticks = [value for value in (0.1, 0.2, 0.33, 0.5, 1, 2, 3, 5, 10) if
                 abs(math.log10(value)) <= edge]
        return {"type": "log", "range": [-edge, edge], "tickvals": ticks, "title": {"text": "r"}}
    widest = max(max(one.d_max, *map(abs, one.d)) for one in every)
    edge = 1.08 * max(widest, 0.1)
    return {"range": [-edge, edge], "title": {"text": "d, in σ"}}


def _told(letter: str, condition: str, last: Sequence[Corrections]) -> str:
    average = _average(last[0].step, last)
    values, part = (
        (average.r, average.clipped_r) if letter == "r" else (average.d, average.clipped_d)
    )
    return (
        f"Correction {letter} along the training in {condition}: at the end the median is "
        f"{values[2]:.2f}, 90 % of the channels lie between {values[0]:.2f} and {values[4]:.2f}, "
        f"and {100 * part:.0f} % at a limit."
    )


def _span(values: Sequence[float], comparison: Comparison) -> list[float]:
    """A range with a margin; percentages stay within 0 to 100, give or take the margin."""
    if not values:
        return [0.0, 1.0]
    low, high = min(values), max(values)
    if comparison.unit.percent:
        low, high = max(low, 0.0), min(high, 100.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return [low - margin, high + margin]


def _place(record: Record) -> tuple[str, str]:
    return record.specification.condition, record.specification.normalizer


def _safe(text: str) -> str:
    """A text without markup, which plotly.js would obey."""
    return html.escape(text, quote=False)
