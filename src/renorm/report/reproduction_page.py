"""A reproduction as one self-contained HTML page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from renorm.report import skeleton
from renorm.report.charts import by_step, curve_of
from renorm.report.page import environments
from renorm.report.palette import styles
from renorm.report.panels import Chart, Panel, safe
from renorm.report.records import Record, Specification
from renorm.report.reproduction import Reproduction
from renorm.report.reproduction_text import took
from renorm.report.statistics import Estimate
from renorm.report.wording import counted, listed, title, unit_for


def write(path: Path, found: Reproduction) -> None:
    """Write the page to a file.

    Raises:
        RecordError: the file cannot be written.
        MissingExtraError: jinja2 or plotly is not installed.
    """
    skeleton.write(path, render(found))


def render(found: Reproduction) -> str:
    """The page as text; the same arguments give the same text.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
    """
    chart = _curves(found.records)
    return skeleton.render(
        "reproduction.html",
        {f"{chart.name}-{place}": panel.figure for place, panel in enumerate(chart.panels)},
        found=found,
        chart=chart,
        measured=[
            (arm.name, name, _figure(value)) for arm in found.arms for name, value in arm.figures
        ],
        environments=environments(found.records),
        took=took(found),
        counted=counted,
    )


def _figure(value: Estimate) -> str:
    width = "" if value.half_width is None else f" ± {value.half_width:.2g}"
    return f"{value.mean:.4g}{width}"


def _curves(records: Sequence[Record]) -> Chart:
    """Learning curves, a panel for the runs that differ in normalizer and seed alone."""
    places: dict[Specification, dict[str, list[Record]]] = {}
    for one in records:
        if one.curve and one.score is not None:
            place = replace(one.specification, normalizer="", seed=0)
            places.setdefault(place, {}).setdefault(one.specification.normalizer, []).append(one)
    looks = styles(list(dict.fromkeys(one.specification.normalizer for one in records)))
    panels = tuple(_panel(place, runs, looks) for place, runs in places.items())
    about = (
        "Scores in eval mode along the training: mean over seeds, the band is the 95 % interval. "
        "Runs that diverged or failed are left out."
    )
    return Chart("curves", "Learning curves", about, panels, ())


def _panel(place: Specification, runs: dict[str, list[Record]], looks: dict) -> Panel:
    first = next(iter(runs.values()))[0]
    unit = unit_for(first.metric, first.percent, [score for _, score in first.curve])
    traces, ends = [], []
    for name, records in runs.items():
        points = [(step, unit.shown(score)) for one in records for step, score in one.curve]
        curve = by_step(points)
        traces += curve_of(name, curve, looks[name])
        ends.append(f"{title(name)} {unit.figure(list(curve.values())[-1])}")
    heading = f"{place.task}, {place.condition}, groups of {place.group_size}"
    layout = {
        "xaxis": {"title": {"text": "training step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": safe(unit.heading)}},
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.25},
    }
    alternative = f"{unit.heading} in {heading} at the end of the training: {listed(ends)}."
    return Panel(heading, alternative, {"data": traces, "layout": layout})
