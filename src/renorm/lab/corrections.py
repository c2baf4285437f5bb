"""r and d of batch renorm along a run, over all of its layers."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from torch import nn

from renorm.measure import Monitor, Observation
from renorm.nn import BatchRenorm
from renorm.report.records import Corrections

TIMES = 20  # a run
_PERCENT = (5, 25, 50, 75, 95)


def monitor_of(model: nn.Module, steps: int) -> Monitor | None:
    """What observes the batch renorm layers of a model ``TIMES`` times at most in so many steps.

    None if it has no such layer. Observing changes nothing of the training.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, BatchRenorm)]
    if not names:
        return None
    return Monitor(model, every=math.ceil(steps / TIMES), layers=names, keep=None)


def pooled(observations: Sequence[Observation]) -> tuple[Corrections, ...]:
    """One entry for each step, all groups and channels of all layers alike.

    Steps with a correction that is not finite are left out: such a run has diverged.
    """
    return tuple(_pooled(observations))


def _pooled(observations: Sequence[Observation]) -> Iterator[Corrections]:
    for step, group in groupby(observations, key=lambda one: one.step):
        own = list(group)
        r, d = (np.concatenate([getattr(one, key).ravel() for one in own]) for key in ("r", "d"))
        if not (np.isfinite(r).all() and np.isfinite(d).all()):
            continue
        parts = np.array([(one.clipped_r, one.clipped_d) for one in own], dtype=np.float64)
        clipped = np.average(parts, axis=0, weights=[one.r.size for one in own])
        r_max, d_max = own[0].r_max, own[0].d_max
        assert r_max is not None
        assert d_max is not None
        clipped_r, clipped_d = map(float, clipped)
        yield Corrections(step, r_max, d_max, _quantiles(r), _quantiles(d), clipped_r, clipped_d)


def _quantiles(values: np.ndarray) -> tuple[float, float, float, float, float]:
    low, lower, middle, upper, high = (
        float(f"{q:.6g}") for q in np.percentile(values.astype(np.float64), _PERCENT)
    )
    return low, lower, middle, upper, high
