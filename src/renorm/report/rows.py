"""Charts with a row a layer, or a row a thing: legible for one row and for hundreds."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from renorm.measure.records import MODEL
from renorm.report.diagnosis_wording import drawn, finite, name_of, number
from renorm.report.palette import Style
from renorm.report.panels import Panel, Trace, safe
from renorm.report.wording import listed

MOST_NAMES = 24  # of the rows that are named beside the axis
ROW, LEAST_ROW, AROUND = 22, 4, 76  # pixels
MOST_LETTERS, MOST_TOLD = 20, 40  # of a name beside the axis, and of one beside the pointer
WIDE = 30.0  # largest over median from which an axis is logarithmic
NEAR = 4.0  # largest over smallest up to which an axis is never logarithmic
FLOOR = 1e-3  # of the largest: what is smaller is drawn there on such an axis
FAINT = 0.4
MOST_TICKS = 6  # of a logarithmic axis


@dataclass(frozen=True)
class Series:
    """One quantity, a point a row.

    Args:
        name: of the quantity.
        values: row -> value; rows without one, or without a finite one, are left out.
        look: of its points.
        errors: row -> half width of a bar around the point.
        told: row -> what is said of the point beside its value.
    """

    name: str
    values: Mapping[str, float | None]
    look: Style
    errors: Mapping[str, float | None] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)

    def drawn(self, rows: Sequence[str]) -> dict[str, float]:
        """The values of the rows that have one."""
        found = {row: self.values.get(row) for row in rows}
        return {row: value for row, value in found.items() if value is not None and finite(value)}


def panel(
    heading: str,
    rows: Sequence[str],
    series: Sequence[Series],
    axis: str,
    *,
    marked: Collection[str] = (),
    reference: float | None = None,
    logarithmic: bool | None = None,
) -> Panel | None:
    """Points in rows, the first row on top; None where there is nothing to draw.

    Args:
        heading: above it.
        rows: names, from top to bottom.
        series: what is drawn.
        axis: what the figures are, with the unit.
        marked: rows that matter; the others are faint.
        reference: where a line is drawn through all rows.
        logarithmic: the axis, where its ends are far enough apart; None to have it so where values
            are very far apart, and none below 0.
    """
    points = [(one, one.drawn(rows)) for one in series]
    rows = [row for row in rows if any(row in values for _, values in points)]
    if not rows:
        return None
    every = [value for _, values in points for value in values.values()]
    if logarithmic is None:
        logarithmic = _far_apart(every)
    ends = [reference] if reference is not None else []
    ends += [
        values[row] + sign * (one.errors.get(row) or 0.0)
        for one, values in points
        for row in values
        for sign in (-1, 1)
    ]
    logarithmic = logarithmic and max([*every, *ends]) > NEAR * max(min([*every, *ends]), 0.0)
    floor = FLOOR * max(every) if logarithmic else -math.inf
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": safe(axis)}, **_scale([*every, *ends], logarithmic)},
        **frame(rows, marked),
    }
    if reference is not None:
        layout["shapes"] = [line_at(reference)]
    data = [_trace(one, values, rows, marked, floor) for one, values in points if values]
    told = [told_of(one.name, values) for one, values in points if values]
    alternative = f"{heading}, {axis}: {'; '.join(told)}."
    return Panel(heading, alternative, {"data": data, "layout": layout})


def frame(rows: Sequence[str], marked: Collection[str]) -> dict[str, Any]:
    """Height and vertical axis: all names where there is room, every so many elsewhere."""
    layers = [row for row in rows if row != MODEL]
    short = dict(zip(layers, shortened([name_of(row) for row in layers]), strict=True))
    names = [short.get(row, name_of(row)) for row in rows]
    named = range(0, len(rows), math.ceil(len(rows) / MOST_NAMES))
    labels = {
        place: f"<b>{safe(names[place])}</b>" if rows[place] in marked else safe(names[place])
        for place in named
    }
    return {
        "height": AROUND + len(rows) * max(row_height(len(rows)), LEAST_ROW),
        "hovermode": "closest",
        "yaxis": {
            "range": [len(rows) - 0.5, -0.5],
            "tickvals": list(labels),
            "ticktext": list(labels.values()),
            "tickfont": {"size": 11},
            "ticklabelstandoff": 4,
        },
    }


def row_height(count: int) -> int:
    """Pixels of a row."""
    return ROW if count <= MOST_NAMES else max(LEAST_ROW, ROW * MOST_NAMES // count)


def line_at(value: float) -> dict[str, Any]:
    """A line through all rows."""
    return {
        "type": "line",
        "x0": value,
        "x1": value,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "var(--ink)", "width": 1, "dash": "dash"},
        "layer": "below",
    }


def told_of(name: str, values: Mapping[str, float]) -> str:
    """What a series shows: all of a few values, the ends of many."""
    if len(values) <= 3:
        return f"{name} {listed([f'{number(v)} ({name_of(row)})' for row, v in values.items()])}"
    ordered = sorted(values, key=lambda row: values[row])
    lowest, middle, highest = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return (
        f"{name} of {len(values)} rows from {number(values[lowest])} ({name_of(lowest)}) to "
        f"{number(values[highest])} ({name_of(highest)}), median {number(values[middle])}"
    )


def shortened(names: Sequence[str], most: int = MOST_LETTERS) -> list[str]:
    """Names that fit and tell layers apart: long ones without some of what all have in common.

    Args:
        names: to be shortened.
        most: letters, without the signs of what was left out.

    >>> shortened(["net.stages.0.blocks.10.norm", "net.stages.3.blocks.7.norm"])
    ['…0.blocks.10.norm', '…3.blocks.7.norm']
    >>> shortened(["layer1.0.bn1", "fc"])
    ['layer1.0.bn1', 'fc']
    """
    if max(map(len, names), default=0) <= most:
        return list(names)
    parts = [name.split(".") for name in names]
    start = _common(parts)
    end = _common([one[start:][::-1] for one in parts])
    while end and _fits(parts, start, end - 1, most):
        end -= 1
    while start and _fits(parts, start - 1, end, most):
        start -= 1
    short = [_cut(text, most) for text in _between(parts, start, end)]
    if len(set(short)) == len(set(names)):
        return short
    return [f"{place}. {text[6 - most :]}" for place, text in enumerate(short, 1)]


def _common(parts: Sequence[Sequence[str]]) -> int:
    """How many components all begin with; one is left of the shortest."""
    count, most = 0, min(map(len, parts)) - 1
    while count < most and len({one[count] for one in parts}) == 1:
        count += 1
    return count


def _between(parts: Sequence[Sequence[str]], start: int, end: int) -> list[str]:
    before, after = "…" if start else "", "…" if end else ""
    return [f"{before}{'.'.join(one[start : len(one) - end])}{after}" for one in parts]


def _fits(parts: Sequence[Sequence[str]], start: int, end: int, most: int) -> bool:
    return max(map(len, _between(parts, start, end))) <= most


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most + 2 else f"…{text[-most:]}"


def _trace(
    series: Series,
    values: Mapping[str, float],
    rows: Sequence[str],
    marked: Collection[str],
    floor: float,
) -> Trace:
    places = [place for place, row in enumerate(rows) if row in values]
    names = [rows[place] for place in places]
    told = shortened([name_of(name) for name in names], MOST_TOLD)
    faint = [FAINT if marked and name not in marked else 1.0 for name in names]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "name": safe(series.name),
        "x": [drawn(max(values[name], floor)) for name in names],
        "y": places,
        "customdata": [
            [safe(name), number(values[row]), safe(series.told.get(row, ""))]
            for row, name in zip(names, told, strict=True)
        ],
        "marker": {
            "color": series.look.colour,
            "symbol": series.look.symbol,
            "size": 9 if len(rows) <= MOST_NAMES else 6,
            "opacity": faint,
        },
        "cliponaxis": False,
        "hovertemplate": "%{customdata[0]}<br>%{fullData.name} %{customdata[1]}%{customdata[2]}"
        "<extra></extra>",
    }
    if any(series.errors.get(name) for name in names):
        bars = {"type": "data", "array": [series.errors.get(name) or 0.0 for name in names]}
        trace["error_x"] = {**bars, "color": series.look.colour, "thickness": 2}
    return trace


def _far_apart(values: Sequence[float]) -> bool:
    if not values or min(values) < 0:
        return False
    middle = sorted(values)[len(values) // 2]
    return middle > 0 and max(values) > WIDE * middle


def _scale(values: Sequence[float], logarithmic: bool) -> dict[str, Any]:
    """The horizontal axis: all values, 0 where none is below, and a margin for the points."""
    low, high = min(values), max(values)
    if logarithmic:
        low = max(low, FLOOR * high)
        if high <= 0:
            return {"range": [-1.0, 1.0]}
        ends = math.log10(low), math.log10(high)
        margin = 0.05 * (ends[1] - ends[0]) or 0.1
        span = [ends[0] - margin, ends[1] + margin]
        ticks = _ticks(*span)
        shown = {"tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}
        return {"type": "log", "range": span, "tickangle": 0, **shown}
    low = min(low, 0.0)
    high = max(high, 0.0)
    margin = 0.05 * (high - low) or 1.0
    return {"range": [low - margin, high + margin], "nticks": 6}


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten, a few of them."""
    inside: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        powers = range(math.floor(low), math.ceil(high) + 1)
        every = [digit * 10.0**power for power in powers for digit in digits]
        found = [tick for tick in every if low <= math.log10(tick) <= high]
        if len(found) <= MOST_TICKS:
            inside = found
    return inside or [10 ** ((low + high) / 2)]
