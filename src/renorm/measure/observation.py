"""What one layer did in one step: the corrections r and d, and the gap between its two modes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from renorm.measure.calls import Seen

_PERCENT = (5, 50, 95)
_NAMES = ("05", "median", "95")


@dataclass(frozen=True, eq=False)
class Observation:
    """One layer in one training step, all of its calls in that step pooled.

    A row is a group of examples with statistics of its own: there is one for each call of the
    layer, with ``microbatch`` one for each microbatch. Groups with fewer than two values, which
    are normalized by the running statistics, are left out.

    Args:
        step: training steps done before.
        layer: its name in the model; ``"(model)"`` for the model itself.
        r: (G, C), ``sigma_B / sigma`` as the layer used it, within its limits. Of a layer
            without limits, which corrects nothing: what it would be, without bounds.
        d: (G, C), ``(mu_B - mu) / sigma``, likewise.
        r_max: bound of r at the first call; None for a layer without limits.
        d_max: bound of d at the first call, likewise.
        clipped_r: fraction of r that is at a bound, 0 to 1; None for a layer without limits.
        clipped_d: fraction of d that is at a bound, likewise.
        gap: root mean square, over all values of the input, of the output in train mode less that
            in eval mode with the running statistics from before, in units of their deviation,
            without weight and bias. 0 for batch renorm with no r or d at a bound.
    """

    step: int
    layer: str
    r: NDArray[np.floating]
    d: NDArray[np.floating]
    r_max: float | None
    d_max: float | None
    clipped_r: float | None
    clipped_d: float | None
    gap: float

    def scalars(self) -> dict[str, float]:
        """The figures as they are logged.

        5 %, 50 % and 95 % quantiles of r and d, as ``r_05``, ``r_median`` and so on, and ``gap``;
        of a layer with limits also ``r_max``, ``d_max``, ``clipped_r`` and ``clipped_d``.
        """
        found = {}
        for name, values in (("r", self.r), ("d", self.d)):
            with np.errstate(invalid="ignore"):
                quantiles = np.percentile(values, _PERCENT)
            found |= {f"{name}_{part}": float(q) for part, q in zip(_NAMES, quantiles, strict=True)}
        found["gap"] = self.gap
        for name in ("r_max", "d_max", "clipped_r", "clipped_d"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        return found


class _Corrected(NamedTuple):
    r: NDArray[np.float64]  # (G, C)
    d: NDArray[np.float64]
    at_r_max: NDArray[np.bool_]
    at_d_max: NDArray[np.bool_]
    squares: float  # sum of (train - eval)^2 over values and channels
    values: float  # over all channels


def observation(step: int, layer: str, calls: Sequence[Seen]) -> Observation | None:
    """What the fetched calls of a layer amount to; None if no group had two values."""
    calls = [call for call in calls if (call.statistics.values > 1).any()]
    if not calls:
        return None
    with np.errstate(over="ignore", invalid="ignore"):  # NaN and inf are part of what was seen
        parts = [_corrected(call) for call in calls]
    first, limited = calls[0].statistics, calls[0].limited
    r, d, at_r_max, at_d_max = (np.concatenate(each) for each in list(zip(*parts, strict=True))[:4])
    return Observation(
        step,
        layer,
        r.astype(first.mean.dtype),
        d.astype(first.mean.dtype),
        float(first.r_max) if limited else None,
        float(first.d_max) if limited else None,
        float(at_r_max.mean()) if limited else None,
        float(at_d_max.mean()) if limited else None,
        gap=float(np.sqrt(sum(p.squares for p in parts) / sum(p.values for p in parts))),
    )


def _corrected(call: Seen) -> _Corrected:
    """r, d and gap of a call, in float64.

    With what the layer uses, mean u and deviation s, and the corrections that it applies (1 and 0
    if it has no limits), the difference of the two outputs is linear in x::

        train - eval = ((x - u) / s * r + d) - (x - mu) / sigma

    so its mean square over x follows from the mean and the variance of x.
    """
    s, eps = call.statistics, call.eps
    known = s.values > 1
    values = s.values[known, None].astype(np.float64)
    mean, var, used_mean, used_var = (
        t[known].astype(np.float64) for t in (s.mean, s.var, s.used_mean, s.used_var)
    )
    mu, sigma = s.running_mean.astype(np.float64), np.sqrt(s.running_var.astype(np.float64) + eps)
    deviation = np.sqrt(used_var + eps)
    r, d = deviation / sigma, (used_mean - mu) / sigma
    at_r_max, at_d_max = (r >= s.r_max) | (r <= 1 / s.r_max), np.abs(d) >= s.d_max
    r, d = np.clip(r, 1 / s.r_max, s.r_max), np.clip(d, -s.d_max, s.d_max)
    scale, shift = (r, d) if call.limited else (np.ones_like(r), np.zeros_like(d))
    slope = scale / deviation - 1 / sigma
    offset = (mean - used_mean) / deviation * scale + shift - (mean - mu) / sigma
    squares = values * (slope**2 * var + offset**2)
    return _Corrected(r, d, at_r_max, at_d_max, float(squares.sum()), float(values.sum()) * len(mu))
