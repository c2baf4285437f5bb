"""What charts are made of: panels for plotly.js, as plain data.

Colours are written ``var(--NAME)`` and looked up in the page's style sheet when a chart is drawn,
so that they follow the reader's light or dark scheme.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from renorm.report.records import Record

Trace = dict[str, Any]


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
        normalizers: those that are drawn, for the key of the colours.
    """

    name: str
    heading: str
    about: str
    panels: tuple[Panel, ...]
    normalizers: tuple[str, ...]


def band(steps: Sequence[int], low: Sequence[float], high: Sequence[float], colour: str) -> Trace:
    """The area between two lines."""
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


def place_of(record: Record) -> tuple[str, str]:
    """Condition and normalizer of a run."""
    return record.specification.condition, record.specification.normalizer


def safe(text: str) -> str:
    """A text without markup, which plotly.js would obey."""
    return html.escape(text, quote=False)
