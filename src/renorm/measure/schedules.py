"""The limits of batch renorm over a range of steps, as data to be drawn."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from renorm.errors import ArgumentError
from renorm.limits import Limits


@dataclass(frozen=True, eq=False)
class Schedule:
    """Limits at some steps.

    Args:
        steps: (S,) int64, updates of the statistics made before.
        r_max: (S,) float64, bound of the scale correction.
        d_max: (S,) float64, bound of the shift correction, in running standard deviations.
    """

    steps: NDArray[np.int64]
    r_max: NDArray[np.float64]
    d_max: NDArray[np.float64]


def schedule(limits: Callable[[Any], tuple[Any, Any]], steps: int | Iterable[int]) -> Schedule:
    """``(r_max, d_max)`` of a schedule at some steps.

    Args:
        limits: one of ``renorm.limits``, called with numbers; or a function, called with 0-d
            int64 tensors, as a layer on an accelerator does.
        steps: a number of steps from 0 on, or the steps, each at least 0.

    Raises:
        ArgumentError: limits cannot be called, or steps are none of these.

    >>> from renorm.limits import over
    >>> drawn = schedule(over(100), range(0, 50, 10))
    >>> drawn.steps.tolist(), drawn.d_max.tolist()
    ([0, 10, 20, 30, 40], [0.0, 1.25, 3.75, 5.0, 5.0])
    """
    if not callable(limits):
        raise ArgumentError(
            f"limits is called with the step and returns (r_max, d_max), got {limits!r}. "
            "Take one of renorm.limits, such as limits.over(1000)."
        )
    counts = _counts(steps)
    given = counts if isinstance(limits, Limits) else [torch.tensor(count) for count in counts]
    pairs = [tuple(map(float, limits(step))) for step in given]
    r_max, d_max = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return Schedule(np.array(counts, dtype=np.int64), r_max, d_max)


def _counts(steps: int | Iterable[int]) -> list[int]:
    try:
        counts = [int(step) for step in (range(steps) if isinstance(steps, int) else steps)]
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"steps is a number of steps or an iterable of them, got {steps!r} ({error}). Give "
            "1000, or range(0, 100_000, 100)."
        ) from error
    if not counts or min(counts) < 0:
        raise ArgumentError(
            f"steps are one at least, and each is 0 or more, got {steps!r}. Give 1000, or "
            "range(0, 100_000, 100)."
        )
    return counts
