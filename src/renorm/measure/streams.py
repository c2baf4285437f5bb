"""Means and deviations of numbers that come one after another."""

import math

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Number, mean and sum of squared deviations of values, merged batch by batch.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm".
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = 0.0
        self.squares = 0.0

    def add(self, n: int, mean: float, squares: float) -> None:
        """Take in n values with this mean and this sum of squared deviations from it."""
        if n:
            delta, total = mean - self.mean, self.n + n
            self.squares += squares + delta**2 * (self.n * n / total)
            self.mean += delta * (n / total)
            self.n = total

    @property
    def var(self) -> float:
        """The biased variance; NaN of nothing."""
        return self.squares / self.n if self.n else math.nan


class Vectors:
    """The mean and the covariance matrix of vectors (K,)."""

    def __init__(self, length: int) -> None:
        self.n = 0
        self.mean = np.zeros(length)
        self._products = np.zeros((length, length))

    def add(self, vector: NDArray[np.float64]) -> None:
        """Take in a vector."""
        self.n += 1
        with np.errstate(all="ignore"):  # NaN and inf are part of what is seen
            delta = vector - self.mean
            self.mean = self.mean + delta / self.n
            self._products += np.outer(delta, vector - self.mean)

    def contrast(self, weights: NDArray[np.float64]) -> tuple[float, float]:
        """``weights @ vector``: its mean and the standard error of that, NaN of fewer than 2."""
        if self.n < 2:
            return float(weights @ self.mean) if self.n else math.nan, math.nan
        with np.errstate(all="ignore"):
            square = float(weights @ self._products @ weights) / (self.n - 1)
            return float(weights @ self.mean), math.sqrt(max(square, 0.0) / self.n)
