"""What a diagnosis draws: plots of one quantity, with the key of their points."""

from collections.abc import Sequence
from dataclasses import dataclass

from renorm.report.palette import SYMBOLS, Style
from renorm.report.panels import Panel

GLYPHS: dict[str, str] = dict(zip(SYMBOLS, "●◆■▲✚▼✖⬟", strict=True))


@dataclass(frozen=True)
class Plot:
    """Panels that show one quantity.

    Args:
        name: of the quantity, a word.
        heading: of the plot.
        about: how to read it.
        panels: those with something to draw, at least one.
        key: (colour, glyph, what it stands for) of the points.
    """

    name: str
    heading: str
    about: str
    panels: tuple[Panel, ...]
    key: tuple[tuple[str, str, str], ...] = ()


def plot(
    name: str,
    heading: str,
    about: str,
    panels: Sequence[Panel | None],
    key: Sequence[tuple[str, Style]] = (),
) -> tuple[Plot, ...]:
    """The plot, or nothing where no panel has anything to draw."""
    found = tuple(panel for panel in panels if panel is not None)
    glyphs = tuple((look.colour, GLYPHS[look.symbol], words) for words, look in key)
    return (Plot(name, heading, about, found, glyphs),) if found else ()
