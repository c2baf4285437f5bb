"""Lines in panels, as an SVG of a few elements: logarithmic upwards, by whole numbers from 1."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 290, 230, 56, 26, 40
# of Okabe and Ito 2008, which readers with a colour deficiency tell apart
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
FLOOR = 1e-12  # what is smaller, or 0, is drawn there


def chart(panels: Mapping[str, Mapping[str, Sequence[float]]], across: int, x: str, y: str) -> str:
    """The document.

    Args:
        panels: by title, then by the name of a line: its values at 1, 2, ...; alike in all panels.
        across: panels in a row.
        x: name of the axis across.
        y: name of the axis upwards.
    """
    values = [v for lines in panels.values() for line in lines.values() for v in line]
    positive = [max(v, FLOOR) for v in values] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    decades = range(low, max(high, low + 1) + 1)
    drawn = [
        f'<g transform="translate({i % across * WIDTH} {i // across * HEIGHT})">'
        f"{_panel(title, lines, decades, x, y)}</g>"
        for i, (title, lines) in enumerate(panels.items())
    ]
    rows = -(-len(panels) // across)
    names = list(next(iter(panels.values()), {}))
    legend = "".join(
        f'<text x="{LEFT + 110 * i}" y="{rows * HEIGHT + 14}" fill="{COLOURS[i]}">{name}</text>'
        for i, name in enumerate(map(escape, names))
    )
    w, h = max(across * WIDTH, LEFT + 110 * len(names)), rows * HEIGHT + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" '
        'font-family="sans-serif" font-size="11">'
        f'<rect width="{w}" height="{h}" fill="white"/>{"".join(drawn)}{legend}</svg>\n'
    )


def _panel(title: str, lines: Mapping[str, Sequence[float]], decades: range, x: str, y: str) -> str:
    right, foot = WIDTH - 10, HEIGHT - BOTTOM
    longest = max(map(len, lines.values()), default=1)

    def across(i: int) -> float:
        return LEFT + (right - LEFT) * (i - 0.5) / longest

    def up(value: float) -> float:
        part = (math.log10(max(value, FLOOR)) - decades[0]) / (decades[-1] - decades[0])
        return foot - part * (foot - TOP)

    parts = [f'<text x="{LEFT}" y="{TOP - 10}" font-weight="bold">{escape(title)}</text>']
    for decade in decades:
        at = up(10.0**decade)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{at + 4:.1f}" text-anchor="end">1e{decade}</text>')
    parts += [
        f'<text x="{across(i):.1f}" y="{foot + 14}" text-anchor="middle">{i}</text>'
        for i in range(1, longest + 1)
    ]
    middle = (TOP + foot) / 2
    parts.append(f'<text x="{right}" y="{foot + 28}" text-anchor="end">{escape(x)}</text>')
    parts.append(
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>"
    )
    for colour, line in zip(COLOURS, lines.values(), strict=False):
        points = " ".join(f"{across(i):.1f},{up(v):.1f}" for i, v in enumerate(line, start=1))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    return "".join(parts)
