"""One look a normalizer or quantity, the same in every chart and table of a page."""

from collections.abc import Sequence
from dataclasses import dataclass

KNOWN = (
    "batch_norm",
    "batch_renorm",
    "group_norm",
    "cross_iteration",
    "layer_norm",
    "slow_batch_norm",
    "none",
)
COLOURS = 8
DASHES = ("solid", "solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "dash")
SYMBOLS = (
    "circle",
    "diamond",
    "square",
    "triangle-up",
    "cross",
    "triangle-down",
    "x",
    "pentagon",
)


@dataclass(frozen=True)
class Style:
    """How a normalizer is drawn; colour is never the one thing that tells two apart.

    Args:
        colour: a custom property of the style sheet, as ``var(--NAME)``.
        dash, symbol: of lines and points, in plotly.js's words.
    """

    colour: str
    dash: str
    symbol: str


def styles(normalizers: Sequence[str]) -> dict[str, Style]:
    """The look of each; known names always have the same, others take what is left in turn.

    >>> styles(["mine", "batch_norm"])["batch_norm"].colour
    'var(--series-0)'
    """
    others = [name for name in normalizers if name not in KNOWN]
    order = (*KNOWN, *others)
    places = {name: order.index(name) % COLOURS for name in normalizers}
    return {name: series(place) for name, place in places.items()}


def series(place: int) -> Style:
    """The look of the quantity at a place, 0 or above, among those of one chart."""
    place %= COLOURS
    return Style(f"var(--series-{place})", DASHES[place], SYMBOLS[place])
