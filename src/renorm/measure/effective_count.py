"""How many values a statistic is of, and how many independent ones they are worth."""

from collections.abc import Iterator, Mapping

import numpy as np

from renorm.measure.collection import Collected
from renorm.measure.inputs import Array, Examples
from renorm.measure.quantity import Plan, Quantity, told
from renorm.measure.records import EffectiveCount


class EffectiveCountQuantity(Quantity):
    """Values of a channel, and their effective number.

    The mean of the S positions of an example, whose values correlate by ``rho``, has the
    variance::

        var(mean) = sigma^2 / S_eff,  S_eff = S^2 / sum_st rho_st

    rho is taken over all examples, about the channel's mean, so ``S_eff`` is the variance of all
    values over that of the examples' means: no lag has to be chosen, and what the positions of an
    example have in common, such as its brightness, counts too. Neighbouring pixels or frames make
    it small. It is that of the input by population statistics, where no example depends on others.
    """

    examines = True

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._spreads: dict[str, _Spread] = {}

    def take_examples(self, layer: str, examples: Examples) -> None:
        """The examples of a batch."""
        kept = examples.values > 0
        if kept.any():
            spread = self._spreads.setdefault(layer, _Spread())
            spread.add(Examples(*(part[kept] for part in examples)))

    def records(self, collected: Mapping[str, Collected]) -> Iterator[EffectiveCount]:
        """One for each layer that was called."""
        for name, found in collected.items():
            spread = self._spreads.get(name)
            each, observed = (None, None) if spread is None else (spread.each, spread.observed)
            positions = None if spread is None else spread.values / spread.examples
            yield EffectiveCount(
                name,
                found.least,
                found.most,
                found.single / found.groups,
                positions,
                _quantile(each, 50),
                _quantile(each, 5),
                None if spread is None else spread.examples / spread.batches,
                _quantile(observed, 50),
            )


class _Spread:
    """Where the variance of a layer's input lies, merged batch by batch.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm".
    """

    def __init__(self) -> None:
        self.batches = self.examples = 0
        self.values = 0.0
        self._mean: Array = np.zeros(())
        self._within: Array = np.zeros(())  # squares about the examples' means
        self._between: Array = np.zeros(())  # of these about the mean of all
        self._batch_mean: Array = np.zeros(())
        self._batch_squares: Array = np.zeros(())

    def add(self, examples: Examples) -> None:
        """Take in a batch of examples that have values."""
        weight = examples.values[:, None]
        n = float(weight.sum())
        with np.errstate(all="ignore"):  # NaN and inf are part of what is seen
            mean = (weight * examples.mean).sum(0) / n
            total, delta = self.values + n, mean - self._mean
            self._within = self._within + examples.squares.sum(0)
            self._between = (
                self._between
                + (weight * (examples.mean - mean) ** 2).sum(0)
                + delta**2 * (self.values * n / total)
            )
            self._mean = self._mean + delta * (n / total)
            self.batches += 1
            apart = mean - self._batch_mean
            self._batch_mean = self._batch_mean + apart / self.batches
            self._batch_squares = self._batch_squares + apart * (mean - self._batch_mean)
        self.values, self.examples = total, self.examples + len(weight)

    @property
    def each(self) -> Array:
        """(C,) independent values that an example is worth."""
        with np.errstate(all="ignore"):
            return (self._within + self._between) / self._between

    @property
    def observed(self) -> Array | None:
        """(C,) variance over that of the means of batches; None of a single one."""
        if self.batches < 2:
            return None
        with np.errstate(all="ignore"):
            var = (self._within + self._between) / self.values
            return var * (self.batches - 1) / self._batch_squares


def _quantile(values: Array | None, percent: float) -> float | None:
    if values is None:
        return None
    finite = values[np.isfinite(values)]
    return told(float(np.percentile(finite, percent))) if len(finite) else None
