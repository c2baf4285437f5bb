"""Schedules of the correction limits (r_max, d_max): pure functions of the step count.

A ``Limits`` is called with the number of statistics updates made so far and returns how far the
correction may go: ``r`` is clipped to ``[1/r_max, r_max]`` and ``d`` to ``[-d_max, d_max]``.
``(1, 0)`` is plain batch norm, ``(inf, inf)`` normalizes by the running statistics alone.

The step may be a number or a 0-d array of any framework with ``clip``; an array is never read
on the host, so a schedule costs no synchronization and no graph break.

Source: Ioffe 2017, Batch Renormalization (arXiv 1702.03275), section 3 and 4.1.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, overload

from renorm.errors import ArgumentError


@dataclass(frozen=True)
class Ramp:
    """``low`` up to step ``start``, then linear, ``high`` from step ``end`` on; both corners exact.

    ``start == end`` is a hard switch at that step; ``low == high`` is a constant.

    Args:
        low: value before the ramp, finite.
        high: value after the ramp, at least ``low``; infinite only if ``low`` is too.
        start: last step at ``low``, at least 0.
        end: first step at ``high``, at least ``start``.

    >>> grow = Ramp(1.0, 3.0, start=5_000, end=40_000)
    >>> grow(0), grow(5_000), grow(22_500), grow(40_000), grow(10**9)
    (1.0, 1.0, 2.0, 3.0, 3.0)
    """

    low: float
    high: float
    start: int = 0
    end: int = 0

    def __post_init__(self) -> None:
        if math.isnan(self.low) or not self.low <= self.high:
            raise ArgumentError(
                f"A ramp must not fall, got low={self.low!r} and high={self.high!r}: "
                "limits only ever open. Give low <= high."
            )
        if math.isinf(self.high) and self.low != self.high:
            raise ArgumentError(
                f"A ramp to {self.high!r} has no values in between, got low={self.low!r}. "
                "Give a finite high, or a constant (low == high)."
            )
        if not (isinstance(self.start, int) and isinstance(self.end, int)):
            raise ArgumentError(
                f"Ramp corners are step counts, got start={self.start!r}, end={self.end!r}. "
                "Give whole numbers."
            )
        if not 0 <= self.start <= self.end:
            raise ArgumentError(
                f"Ramp corners must satisfy 0 <= start <= end, got start={self.start}, "
                f"end={self.end}."
            )

    def __call__(self, step: Any) -> Any:
        """The value at ``step``: a float for a number or a constant ramp, else an array."""
        if self.low == self.high:
            return self.high
        if isinstance(step, (int, float)):
            if step >= self.end:
                return self.high
            if step <= self.start:
                return self.low
            part = (step - self.start) / (self.end - self.start)
            return min(self.low + (self.high - self.low) * part, self.high)
        done = step >= self.end
        if self.start == self.end:
            return self.high * done + self.low * ~done
        part = ((step - self.start) / (self.end - self.start)).clip(0.0, 1.0)
        rising = (self.low + (self.high - self.low) * part).clip(self.low, self.high)
        return self.high * done + rising * ~done  # exact at the end, whatever the rounding

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.high:g}"
        if self.start == self.end:
            return f"{self.low:g} -> {self.high:g} at step {self.end}"
        return f"{self.low:g} -> {self.high:g} over steps {self.start} to {self.end}"


@dataclass(frozen=True)
class Limits:
    """The pair of schedules ``step -> (r_max, d_max)``; frozen, picklable, JSON and back.

    Args:
        r_max: bound of the scale correction, at least 1 everywhere.
        d_max: bound of the shift correction, in running standard deviations, at least 0.

    >>> paper()(30_000)
    (2.428571428571429, 5.0)
    >>> print(fixed(3, 5))
    r_max 3, d_max 5
    >>> Limits.from_json(paper().to_json()) == paper()
    True
    """

    r_max: Ramp
    d_max: Ramp

    def __post_init__(self) -> None:
        if self.r_max.low < 1:
            raise ArgumentError(
                f"r_max bounds a ratio from above and its inverse from below, so it must be at "
                f"least 1, got {self.r_max.low!r}. Use 1 for no scale correction (batch norm)."
            )
        if self.d_max.low < 0:
            raise ArgumentError(
                f"d_max bounds an absolute value, so it must be at least 0, got "
                f"{self.d_max.low!r}. Use 0 for no shift correction (batch norm)."
            )

    @overload
    def __call__(self, step: float) -> tuple[float, float]: ...
    @overload
    def __call__(self, step: Any) -> tuple[Any, Any]: ...
    def __call__(self, step: Any) -> tuple[Any, Any]:
        """``(r_max, d_max)`` after ``step`` statistics updates."""
        return self.r_max(step), self.d_max(step)

    def __str__(self) -> str:
        return f"r_max {self.r_max}, d_max {self.d_max}"

    def to_json(self) -> str:
        """The schedule as a JSON object; infinite limits are written as the string "inf"."""
        ramps = {
            name: {key: "inf" if value == math.inf else value for key, value in ramp.items()}
            for name, ramp in asdict(self).items()
        }
        return json.dumps(ramps)

    @classmethod
    def from_json(cls, text: str) -> "Limits":
        """The schedule that ``to_json`` wrote.

        Raises:
            ArgumentError: the text is no such object, or a key is missing or unknown.
        """
        try:
            data = json.loads(text)
            return cls(**{name: _ramp_from_json(ramp) for name, ramp in data.items()})
        except (json.JSONDecodeError, AttributeError, TypeError) as error:
            allowed = ", ".join(field.name for field in fields(Ramp))
            raise ArgumentError(
                f"Limits are a JSON object with the keys r_max and d_max, each an object with "
                f"{allowed}; got {text!r} ({error}). Write it with Limits.to_json()."
            ) from error


def _ramp_from_json(ramp: dict[str, Any]) -> Ramp:
    values: dict[str, Any] = {k: math.inf if v == "inf" else v for k, v in ramp.items()}
    return Ramp(**values)


def paper() -> Limits:
    """The schedule of the paper: batch norm for 5,000 steps, r_max 3 at 40,000, d_max 5 at 25,000.

    The paper says "gradually"; the linear shape is the usual reading. Made for a run of some
    100,000 steps: for other lengths use ``over``. Source: Ioffe 2017, section 4.1.

    >>> paper()(4_999), paper()(40_000)
    ((1.0, 0.0), (3.0, 5.0))
    """
    return Limits(Ramp(1.0, 3.0, 5_000, 40_000), Ramp(0.0, 5.0, 5_000, 25_000))


def over(total_steps: int) -> Limits:
    """The paper's schedule scaled to a run: corners at 5 %, 25 % (d_max) and 40 % (r_max) of it.

    ``over(100_000)`` is ``paper()``. The limits should not open before the running statistics have
    settled, which takes about 3 / momentum updates: below some 6,000 steps raise the momentum.

    Args:
        total_steps: length of the run in statistics updates (training forwards), at least 1.

    >>> print(over(2_000))
    r_max 1 -> 3 over steps 100 to 800, d_max 0 -> 5 over steps 100 to 500
    """
    if not isinstance(total_steps, int) or total_steps < 1:
        raise ArgumentError(
            f"total_steps is the number of training forwards of the run, at least 1, got "
            f"{total_steps!r}."
        )
    start, d_end, r_end = (round(total_steps * percent / 100) for percent in (5, 25, 40))
    return Limits(Ramp(1.0, 3.0, start, r_end), Ramp(0.0, 5.0, start, d_end))


def fixed(r_max: float, d_max: float) -> Limits:
    """The same limits at every step; for fine-tuning from settled running statistics.

    Args:
        r_max: at least 1; ``inf`` for no bound.
        d_max: at least 0; ``inf`` for no bound.

    >>> fixed(1.5, 0.5)(0)
    (1.5, 0.5)
    """
    r_max, d_max = float(r_max), float(d_max)
    return Limits(Ramp(r_max, r_max), Ramp(d_max, d_max))


def batch_norm() -> Limits:
    """No correction at all, (1, 0): batch norm that averages the standard deviation.

    >>> batch_norm()(10**6)
    (1.0, 0.0)
    """
    return fixed(1, 0)


def crossq(warmup: int = 100_000) -> Limits:
    """CrossQ (ICLR 2024): batch norm for 100,000 updates, then (3, 5) at once.

    Args:
        warmup: updates before the limits open, at least 0.

    >>> crossq()(99_999), crossq()(100_000)
    ((1.0, 0.0), (3.0, 5.0))
    """
    return Limits(Ramp(1.0, 3.0, warmup, warmup), Ramp(0.0, 5.0, warmup, warmup))


def latent_replay(batch_size: int = 128) -> Limits:
    """AR1* with latent replay: tight limits (1.25, 0.5) that open by 4.1e-5 an example.

    Args:
        batch_size: examples a statistics update, at least 1.

    >>> print(latent_replay())
    r_max 1 -> 1.25 over steps 0 to 48, d_max 0 -> 0.5 over steps 0 to 96
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ArgumentError(f"batch_size counts examples, at least 1, got {batch_size!r}.")
    r_end, d_end = (math.ceil(width / (4.1e-5 * batch_size)) for width in (0.25, 0.5))
    return Limits(Ramp(1.0, 1.25, 0, r_end), Ramp(0.0, 0.5, 0, d_end))
