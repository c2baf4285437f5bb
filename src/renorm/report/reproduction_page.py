"""A reproduction as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from renorm.report import skeleton
from renorm.report.charts import by_step, curve_of
from renorm.report.page import environments
from renorm.report.palette import series
from renorm.report.panels import Chart, Panel, safe
from renorm.report.records import Record, Specification
from renorm.report.reproduction import Arm, Reproduction
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
    chart = _curves(found)
    return skeleton.render(
        "reproduction.html",
        {f"{chart.name}-{place}": panel.figure for place, panel in enumerate(chart.panels)},
        ("reproduction.css",),
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


def _curves(found: Reproduction) -> Chart:
    """Learning curves, a panel for the arms that differ in their normalizer alone."""
    records: dict[Specification, list[Record]] = {}
    for one in found.records:
        if one.curve and one.score is not None:
            records.setdefault(replace(one.specification, seed=0), []).append(one)
    places: dict[Specification, list[Arm]] = {}
    for arm in found.arms:
        if arm.run in records:
            places.setdefault(replace(arm.run, normalizer=""), []).append(arm)
    panels = tuple(_panel(arms, records) for arms in places.values())
    about = (
        "Scores in eval mode along the training: mean over seeds, the band is the 95 % interval. "
        "Runs that diverged or failed are left out."
    )
    return Chart("curves", "Learning curves", about, panels, ())


def _panel(arms: Sequence[Arm], records: Mapping[Specification, Sequence[Record]]) -> Panel:
    first = records[arms[0].run][0]
    unit = unit_for(first.metric, first.percent, [score for _, score in first.curve])
    traces, ends = [], []
    for place, arm in enumerate(arms):
        points = [
            (step, unit.shown(score)) for one in records[arm.run] for step, score in one.curve
        ]
        curve, name = by_step(points), arm.run.normalizer
        shade, line = curve_of(name, curve, series(place))
        traces += [{**shade, "showlegend": False}, line]
        ends.append(f"{title(name)} {unit.figure(list(curve.values())[-1])}")
    heading = _shared([arm.name for arm in arms])
    layout = {
        "xaxis": {"title": {"text": "training step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": safe(unit.heading)}},
        "showlegend": True,
        "legend": {"orientation": "h", "y": -0.3, "yanchor": "top"},
        "height": 290 + 20 * len(arms),
        "margin": {"l": 56, "r": 12, "t": 8, "b": 70 + 20 * len(arms)},
    }
    alternative = f"{unit.heading} in {heading} at the end of the training: {listed(ends)}."
    return Panel(heading, alternative, {"data": traces, "layout": layout})


def _shared(names: Sequence[str]) -> str:
    """What the names of arms begin with, part by part.

    >>> _shared(["groups of 2, batch norm", "groups of 2, batch renorm"])
    'groups of 2'
    """
    parts = [name.split(", ") for name in names]
    same = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return ", ".join(column[0] for column in same) or "all arms"
