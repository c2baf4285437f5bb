"""Which channels carry nothing: a map of layers against what is wrong with their channels."""

from collections.abc import Collection, Sequence
from typing import Any

from renorm.measure.records import ChannelHealth, Survey
from renorm.report.diagnosis_wording import name_of
from renorm.report.panels import Panel, safe
from renorm.report.plots import Plot, plot
from renorm.report.rows import frame

KINDS = {
    "not_finite": "input not finite",
    "bad_statistics": "statistics not finite",
    "bad_parameters": "weights not finite",
    "constant": "constant",
    "dead": "dead",
    "eps_dominated": "below eps",
    "saturated": "saturated",
    "negative": "never above 0",
}
COLOURS = [[0.0, "var(--series-7)30"], [1.0, "var(--series-7)90"]]


def counts(one: ChannelHealth) -> dict[str, int]:
    """How many channels have what, of what any has."""
    found = {words: len(getattr(one, kind)) for kind, words in KINDS.items()}
    return {words: count for words, count in found.items() if count}


def health(survey: Survey, rows: Sequence[str], marked: Collection[str]) -> tuple[Plot, ...]:
    """The fraction of channels in each state, of the layers that have any."""
    found = {one.layer: (one, counts(one)) for one in survey.of(ChannelHealth) if one.layer in rows}
    rows = [row for row in rows if row in found and found[row][1]]
    kinds = [words for words in KINDS.values() if any(words in found[row][1] for row in rows)]
    if not rows:
        return ()
    shares = [[_share(*found[row], words) for words in kinds] for row in rows]
    told = [[_told(*found[row], words) for words in kinds] for row in rows]
    layout: dict[str, Any] = {
        "xaxis": {"showgrid": False, "side": "bottom", "tickangle": -40},
        **frame(rows, marked),
    }
    layout["yaxis"]["showgrid"] = False
    layout["height"] += 70  # the names of the states are slanted
    data = {
        "type": "heatmap",
        "x": kinds,
        "y": list(range(len(rows))),
        "z": shares,
        "zmin": 0,
        "zmax": 100,
        "colorscale": COLOURS,
        "showscale": False,
        "xgap": 2,
        "ygap": 1,
        "text": [[_percent(share) for share in line] for line in shares],
        "texttemplate": "%{text}" if len(rows) <= 2 * len(KINDS) else "",
        "textfont": {"color": "var(--ink)"},
        "customdata": told,
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
    }
    about = (
        "The share of a layer's channels, in %, that carry nothing or are not finite; layers "
        "without any are left out. Dead: the output hardly varies. Below eps: the variance is less "
        "than the eps that is added to it. Saturated: nearly all values sit at the ends of their "
        "range. Never above 0: nothing would pass a ReLU."
    )
    worst = [f"{name_of(row)} ({_words(found[row][1])})" for row in rows[:10]]
    more = f", and {len(rows) - 10} more" if len(rows) > 10 else ""
    alternative = f"Channels with a problem, in % of the layer: {', '.join(worst)}{more}."
    drawn = Panel("Channels with a problem, %", alternative, {"data": [data], "layout": layout})
    return plot("health", "Channels that carry nothing", about, [drawn])


def _share(one: ChannelHealth, found: dict[str, int], words: str) -> float | None:
    """In percent; None for no channel, which has no cell."""
    return 100 * found[words] / one.channels if words in found else None


def _percent(share: float | None) -> str:
    return "" if share is None else "<1" if share < 1 else f"{share:.0f}"


def _told(one: ChannelHealth, found: dict[str, int], words: str) -> str:
    count = found.get(words, 0)
    return f"{safe(name_of(one.layer))}<br>{count} of {one.channels} channels {words}"


def _words(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {words}" for words, count in found.items())
