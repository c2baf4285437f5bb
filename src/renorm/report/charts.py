"""The charts of a comparison: scores, learning curves, corrections; a panel a condition."""

from collections.abc import Iterable, Sequence

from renorm.report import correction_charts
from renorm.report.cells import Cell
from renorm.report.comparison import Comparison
from renorm.report.correction_charts import SCALE, SHIFT
from renorm.report.palette import Style, styles
from renorm.report.panels import Chart, Panel, Trace, band, place_of, safe
from renorm.report.records import Record
from renorm.report.statistics import Estimate, estimate
from renorm.report.wording import listed, title

BAND = "40"


def charts(comparison: Comparison, records: Sequence[Record]) -> tuple[Chart, ...]:
    """All charts for which there is something to draw.

    Args:
        comparison: gives the order and the unit.
        records: of its runs.
    """
    found = (
        _scores(comparison, records),
        _curves(comparison, records),
        correction_charts.chart(SCALE, comparison, records),
        correction_charts.chart(SHIFT, comparison, records),
    )
    return tuple(chart for chart in found if chart.panels)


def _scores(comparison: Comparison, records: Sequence[Record]) -> Chart:
    unit, looks = comparison.unit, styles(comparison.normalizers)
    seeds: dict[tuple[str, str], list[float]] = {}
    for one in records:
        if one.score is not None:
            seeds.setdefault(place_of(one), []).append(unit.shown(one.score))
    singles = [value for values in seeds.values() for value in values]
    span = _span([*singles, *_ends(cell.score for cell in comparison.cells)])
    panels = []
    for condition in comparison.conditions:
        cells = [one for one in comparison.cells if one.condition == condition and one.score]
        if not cells:
            continue
        traces = [
            trace
            for cell in cells
            for trace in _means(cell, seeds[condition, cell.normalizer], looks[cell.normalizer])
        ]
        layout = {
            "xaxis": {"title": {"text": safe(unit.heading)}, "range": span},
            "yaxis": {"type": "category", "autorange": "reversed"},
            "height": 80 + 34 * len(cells),
            "hovermode": "closest",
        }
        figures = [f"{title(one.normalizer)} {unit.figure(one.score)}" for one in cells]
        alternative = f"{unit.heading} in {condition}: {listed(figures)}."
        panels.append(Panel(condition, alternative, {"data": traces, "layout": layout}))
    about = "Mean and 95 % interval of each normalizer; the faint points are single seeds."
    return Chart("scores", "Scores", about, tuple(panels), comparison.normalizers)


def _means(cell: Cell, seeds: Sequence[float], look: Style) -> list[Trace]:
    """The scores of the seeds, and their mean with its interval, in a row of their own."""
    name = safe(title(cell.normalizer))
    mean = estimate(seeds)
    common = {"type": "scatter", "mode": "markers"}
    return [
        {
            **common,
            "x": list(seeds),
            "y": [name] * len(seeds),
            "marker": {"color": look.colour, "opacity": 0.35, "size": 7, "symbol": look.symbol},
            "hoverinfo": "skip",
        },
        {
            **common,
            "x": [mean.mean],
            "y": [name],
            "error_x": {
                "type": "data",
                "array": [mean.half_width or 0.0],
                "color": look.colour,
                "thickness": 2,
            },
            "marker": {"color": look.colour, "size": 10, "symbol": look.symbol},
            "hovertemplate": "%{y}: %{x:.4~g}<extra></extra>",
        },
    ]


def _curves(comparison: Comparison, records: Sequence[Record]) -> Chart:
    unit, looks = comparison.unit, styles(comparison.normalizers)
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for one in records:
        if one.score is not None:
            shown = [(step, unit.shown(score)) for step, score in one.curve]
            points.setdefault(place_of(one), []).extend(shown)
    curves = {place: by_step(values) for place, values in points.items() if values}
    span = _span(_ends(value for curve in curves.values() for value in curve.values()))
    panels = []
    for condition in comparison.conditions:
        here = [name for name in comparison.normalizers if (condition, name) in curves]
        if not here:
            continue
        traces = [
            trace for name in here for trace in curve_of(name, curves[condition, name], looks[name])
        ]
        layout = {
            "xaxis": {"title": {"text": "training step"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": safe(unit.heading)}, "range": span},
        }
        ends = [
            f"{title(name)} {unit.figure(list(curves[condition, name].values())[-1])}"
            for name in here
        ]
        alternative = f"{unit.heading} in {condition} at the end of the training: {listed(ends)}."
        panels.append(Panel(condition, alternative, {"data": traces, "layout": layout}))
    about = (
        "Scores in eval mode along the training: mean over seeds, the band is the 95 % interval. "
        "Runs that diverged or failed are left out."
    )
    return Chart("curves", "Learning curves", about, tuple(panels), comparison.normalizers)


def by_step(points: Iterable[tuple[int, float]]) -> dict[int, Estimate]:
    """The mean over seeds at each step."""
    values: dict[int, list[float]] = {}
    for step, value in points:
        values.setdefault(step, []).append(value)
    return {step: estimate(values[step]) for step in sorted(values)}


def curve_of(normalizer: str, curve: dict[int, Estimate], look: Style) -> list[Trace]:
    """A line over the steps, in the band of its interval."""
    steps = list(curve)
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": safe(title(normalizer)),
        "x": steps,
        "y": [one.mean for one in curve.values()],
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "hovertemplate": "%{y:.4~g}",
    }
    low = [one.mean - (one.half_width or 0.0) for one in curve.values()]
    high = [one.mean + (one.half_width or 0.0) for one in curve.values()]
    return [band(steps, low, high, look.colour + BAND), line]


def _ends(values: Iterable[Estimate | None]) -> list[float]:
    """Both ends of each interval."""
    return [one.mean + sign * (one.half_width or 0.0) for one in values if one for sign in (-1, 1)]


def _span(values: Sequence[float]) -> list[float]:
    """The range of an axis: all values, and a margin."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return [low - margin, high + margin]
