"""The observations of a step as text."""

from collections.abc import Sequence

from renorm.measure.observation import Observation

_TITLES = ("layer", "r 5%", "50%", "95%", "d 5%", "50%", "95%", "r_max", "d_max",
           "at r_max", "at d_max", "gap")  # fmt: skip
_QUANTILES = ("r_05", "r_median", "r_95", "d_05", "d_median", "d_95")
_WIDEST = 40


def render(observations: Sequence[Observation]) -> str:
    """A line a layer: quantiles of r and d, limits, the fractions at them, and the gap."""
    rows = [_TITLES, *map(_cells, observations)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([f"step {observations[0].step}", *lines])


def _cells(one: Observation) -> tuple[str, ...]:
    scalars = one.scalars()
    name = one.layer if len(one.layer) <= _WIDEST else ".." + one.layer[2 - _WIDEST :]
    bounds = ("-" if bound is None else f"{bound:.3g}" for bound in (one.r_max, one.d_max))
    parts = ("-" if p is None else f"{100 * p:.0f}%" for p in (one.clipped_r, one.clipped_d))
    quantiles = (f"{scalars[key]:.2f}" for key in _QUANTILES)
    return (name, *quantiles, *bounds, *parts, f"{one.gap:.3f}")
