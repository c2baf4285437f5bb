"""Distributions of r and d, a row a layer, with the limits of the layer drawn."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from renorm.measure.records import BatchNoise, LayerFacts, LimitsAhead, Survey
from renorm.report.diagnosis_wording import drawn, finite, name_of, number
from renorm.report.palette import series as look
from renorm.report.panels import Panel, Trace, safe
from renorm.report.rows import FAINT, MOST_NAMES, MOST_TOLD, frame, line_at, row_height, shortened

FARTHEST = 3.0  # limits are in the plot if they lie within this many times the spread of the data
ABOVE = (1.02, 1.05, 1.1, 1.25, 1.5, 2, 3, 5, 10, 30, 100, 1000, 1e4)  # ticks of r, and 1 / them

Quantiles = Mapping[str, tuple[float, ...]]
Limits = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Correction:
    """One of the two corrections; its figures are logarithms where ``log``.

    Args:
        heading, axis: of its panel.
        quantiles: of a layer: 5, 25, 50, 75 and 95 %.
        limit: above the middle of a layer's limits, of which the lower one is the opposite.
        place: of its look.
        log: whether it is drawn as a factor.
    """

    heading: str
    axis: str
    quantiles: Callable[[BatchNoise], tuple[float, ...] | None]
    limit: Callable[[LayerFacts | LimitsAhead], float]
    place: int
    log: bool


SHIFT = Correction("Shift d", "d, in sigma", lambda one: one.d, lambda one: one.d_max, 2, False)
SCALE = Correction("Scale r", "r", lambda one: one.log_r, lambda one: math.log(one.r_max), 0, True)


def panels(survey: Survey, rows: Sequence[str], marked: Collection[str]) -> list[Panel | None]:
    """One of d and one of r, where there is something to draw."""
    return [_panel(one, survey, rows, marked) for one in (SHIFT, SCALE)]


def _panel(
    correction: Correction, survey: Survey, rows: Sequence[str], marked: Collection[str]
) -> Panel | None:
    found = {one.layer: correction.quantiles(one) for one in survey.of(BatchNoise)}
    quantiles = {
        row: values
        for row in rows
        if (values := found.get(row)) is not None and all(map(math.isfinite, values))
    }
    if not quantiles:
        return None
    rows = list(quantiles)
    now = dict(_limits(correction, survey.of(LayerFacts), rows))
    ahead = dict(_limits(correction, survey.of(LimitsAhead), rows))
    edge = _edge(quantiles, [*now.values(), *ahead.values()])
    data = [
        *_distribution(correction, quantiles, marked),
        *_ticks(correction, "limit", rows, now, edge, "solid"),
        *_ticks(correction, "limit at the end of the run", rows, ahead, edge, "dot"),
    ]
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": correction.axis}, **_scale(correction, edge)},
        "shapes": [line_at(1.0 if correction.log else 0.0)],
        **frame(rows, marked),
    }
    return Panel(
        correction.heading, _told(correction, quantiles, now), {"data": data, "layout": layout}
    )


def _limits(
    correction: Correction, records: Sequence[LayerFacts | LimitsAhead], rows: Collection[str]
) -> Iterator[tuple[str, float]]:
    """(layer, limit) of layers that correct, where it is finite."""
    for one in records:
        limit = correction.limit(one)
        if one.layer in rows and limit > 0 and finite(limit):
            yield one.layer, limit


def _edge(quantiles: Quantiles, limits: Sequence[float]) -> float:
    """Half the width of the axis: all distributions, and the limits that are not far off."""
    spread = max(max(map(abs, values)) for values in quantiles.values()) or 0.1
    return 1.08 * max([spread, *(one for one in limits if one <= FARTHEST * spread)])


def _distribution(
    correction: Correction, quantiles: Quantiles, marked: Collection[str]
) -> Iterator[Trace]:
    names = list(quantiles)
    told = shortened([name_of(name) for name in names], MOST_TOLD)
    look_of, width = look(correction.place), row_height(len(names))
    columns = list(zip(*quantiles.values(), strict=True))
    for (low, high), thickness in (((0, 4), 1.5), ((1, 3), min(7.0, 0.5 * width))):
        yield {
            "type": "scatter",
            "mode": "lines",
            "x": _segments(correction, columns[low], columns[high]),
            "y": [place for n in range(len(names)) for place in (n, n, None)],
            "line": {"color": look_of.colour, "width": thickness},
            "opacity": 0.55,
            "hoverinfo": "skip",
        }
    yield {
        "type": "scatter",
        "mode": "markers",
        "x": [_drawn(correction, value) for value in columns[2]],
        "y": list(range(len(names))),
        "customdata": [
            _hover(correction, name, values)
            for name, values in zip(told, quantiles.values(), strict=True)
        ],
        "marker": {
            "color": look_of.colour,
            "symbol": look_of.symbol,
            "size": 8 if len(names) <= MOST_NAMES else 5,
            "opacity": [FAINT if marked and name not in marked else 1.0 for name in names],
        },
        "hovertemplate": "%{customdata[0]}<br>median %{customdata[1]}<br>"
        "50 %: %{customdata[2]}<br>90 %: %{customdata[3]}<extra></extra>",
    }


def _ticks(
    correction: Correction,
    name: str,
    rows: Sequence[str],
    limits: Mapping[str, float],
    edge: float,
    dash: str,
) -> Iterator[Trace]:
    """A short vertical line at both limits of each layer, where the axis reaches them."""
    inside = {row: limit for row, limit in limits.items() if limit <= edge}
    ends = [(rows.index(row), sign * limit) for row, limit in inside.items() for sign in (-1, 1)]
    if ends:
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": [x for _, end in ends for x in (*[_drawn(correction, end)] * 2, None)],
            "y": [y for place, _ in ends for y in (place - 0.42, place + 0.42, None)],
            "line": {"color": "var(--ink)", "width": 2, "dash": dash},
            "hovertemplate": f"{name}: %{{x:.3~g}}<extra></extra>",
        }


def _segments(
    correction: Correction, low: Sequence[float], high: Sequence[float]
) -> list[float | None]:
    return [
        x
        for ends in zip(low, high, strict=True)
        for x in (*(_drawn(correction, end) for end in ends), None)
    ]


def _drawn(correction: Correction, value: float) -> float:
    return drawn(math.exp(value) if correction.log else value)


def _hover(correction: Correction, name: str, values: tuple[float, ...]) -> list[str]:
    lowest, low, median, high, highest = (number(_drawn(correction, value)) for value in values)
    return [safe(name), median, f"{low} to {high}", f"{lowest} to {highest}"]


def _scale(correction: Correction, edge: float) -> dict[str, Any]:
    """Of r logarithmic, so that r and 1/r are as far from 1."""
    if not correction.log:
        return {"range": [-edge, edge]}
    near = [value for value in ABOVE if 0.2 * edge <= math.log(value) <= edge][-3:]
    ticks = [*(1 / value for value in reversed(near)), 1.0, *near]
    ends = [sign * edge / math.log(10) for sign in (-1, 1)]
    labels = [f"{tick:.2g}" if tick < 1 else f"{tick:g}" for tick in ticks]
    return {"type": "log", "range": ends, "tickvals": ticks, "ticktext": labels}


def _told(correction: Correction, quantiles: Quantiles, limits: Mapping[str, float]) -> str:
    """The layer whose distribution is widest, and the limits if they are all the same."""
    widest = max(quantiles, key=lambda row: max(map(abs, quantiles[row])))
    low, high = (number(_drawn(correction, quantiles[widest][end])) for end in (0, 4))
    text = (
        f"{correction.heading} of {len(quantiles)} layers. Widest in {name_of(widest)}: 90 % of "
        f"batches and channels between {low} and {high}."
    )
    ends = set(limits.values())
    if len(ends) == 1:
        (limit,) = ends
        both = [number(_drawn(correction, sign * limit)) for sign in (-1, 1)]
        text += f" Limits: {both[0]} and {both[1]}."
    return text
