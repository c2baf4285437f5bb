"""How far the statistics of batches lie from the population's: what r and d would be."""

from collections.abc import Iterator, Mapping

import numpy as np

from renorm.measure.collection import Collected
from renorm.measure.inputs import Array
from renorm.measure.layers import eps_of
from renorm.measure.quantity import Quantity
from renorm.measure.records import BatchNoise

R_LIMITS = (1.1, 1.5, 2.0, 3.0, 5.0)
D_LIMITS = (0.1, 0.5, 1.0, 2.0, 5.0)
_PERCENT = (5, 25, 50, 75, 95)


class BatchNoiseQuantity(Quantity):
    """d and log r over channels, and groups of examples with statistics of their own.

    Of every layer::

        d = (mu_B - mu) / sigma,  log r = log(sigma_B / sigma)

    with mean mu and deviation sigma of the population, eps inside of both roots. With n
    independent normal values in a group, the root mean square of d is ``1 / sqrt(n)``, and that
    of log r about ``1 / sqrt(2 n)``.
    """

    def records(self, collected: Mapping[str, Collected]) -> Iterator[BatchNoise]:
        """One for each layer with a group of two values."""
        for name, found in collected.items():
            if found.rows is not None:
                r, d = corrections(found, eps_of(self.plan.layers[name]))
                yield _record(name, found.groups, len(found.rows.values), r, d)


def corrections(found: Collected, eps: float) -> tuple[Array, Array]:
    """Log r and d (G, C) of the kept groups against the population."""
    population, rows = found.population, found.rows
    assert rows is not None
    with np.errstate(all="ignore"):
        sigma = np.sqrt(population.var + eps)
        d = (rows.mean - population.mean) / sigma
        return np.log(np.sqrt(rows.var + eps) / sigma), d


def _record(name: str, groups: int, kept: int, log_r: Array, d: Array) -> BatchNoise:
    usable = (np.isfinite(log_r) & np.isfinite(d)).all(0)
    log_r, d = log_r[:, usable], d[:, usable]
    if not usable.any():
        return BatchNoise(name, groups, kept, 0, None, None, None, None, None, None)
    size = np.abs(log_r), np.abs(d)
    return BatchNoise(
        name,
        groups,
        kept,
        int(usable.sum()),
        _quantiles(log_r),
        _quantiles(d),
        float(np.sqrt((log_r**2).mean())),
        float(np.sqrt((d**2).mean())),
        tuple((limit, float((size[0] > np.log(limit)).mean())) for limit in R_LIMITS),
        tuple((limit, float((size[1] > limit).mean())) for limit in D_LIMITS),
    )


def _quantiles(values: Array) -> tuple[float, ...]:
    return tuple(map(float, np.percentile(values, _PERCENT)))
