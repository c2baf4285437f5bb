"""Means and variances of many batches, per channel, in float64."""

from functools import reduce
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from renorm.errors import ArgumentError

# values taken to float64 at a time, so that a large activation is not copied as a whole
_CHUNK = 2**22


class Moments(NamedTuple):
    """Number of values, their mean (C,), and sum of squared deviations from it (C,)."""

    n: int
    mean: Tensor | float
    m2: Tensor | float


_NOTHING = Moments(0, 0.0, 0.0)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of values together.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm".
    """
    n = a.n + b.n
    if not n:
        return _NOTHING
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.n / n)
    return Moments(n, mean, a.m2 + b.m2 + delta**2 * (a.n * b.n / n))


def moments(x: Tensor, mask: Tensor | None = None) -> Moments:
    """The moments of x (N, C, *spatial) where mask (N, *spatial) is True."""
    size = max(1, _CHUNK // max(1, x.shape[1:].numel()))
    masks = [None] * len(x) if mask is None else mask.split(size)
    return reduce(merge, map(_moments, x.split(size), masks), _NOTHING)


def _moments(x: Tensor, mask: Tensor | None) -> Moments:
    values = x.detach().transpose(0, 1).flatten(1)
    if mask is not None:
        values = values[:, mask.flatten()]
    if not values.shape[1]:
        return _NOTHING
    values = values.to("cpu" if x.device.type == "mps" else x.device).double()  # mps has no float64
    mean = values.mean(1, keepdim=True)
    return Moments(values.shape[1], mean[:, 0], (values - mean).square().sum(1))


class Pool(Protocol):
    """Takes the inputs of one layer, batch after batch."""

    def add(self, x: Tensor, mask: Tensor | None, microbatch: int | None) -> None:
        """Take in a batch x (N, C, *spatial)."""
        ...

    def result(self) -> tuple[Tensor, Tensor] | None:
        """Mean (C,) and variance (C,), or None if there was no value."""
        ...


class Population:
    """All values as one set: ``var = m2 / count``, however they were split into batches."""

    def __init__(self, name: str) -> None:
        self._sum = _NOTHING

    def add(self, x: Tensor, mask: Tensor | None, microbatch: int | None) -> None:
        """Take in a batch; groups make no difference."""
        self._sum = merge(self._sum, moments(x, mask))

    def result(self) -> tuple[Tensor, Tensor] | None:
        """Mean and biased variance of all values."""
        n, mean, m2 = self._sum
        return (torch.as_tensor(mean), torch.as_tensor(m2 / n)) if n else None


class Paper:
    """``E[x] = E_B[mu_B]``, ``Var[x] = E_B[m / (m - 1) * var_B]``, every batch with weight 1."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._batches = 0
        self._mean: Tensor | float = 0.0
        self._var: Tensor | float = 0.0

    def add(self, x: Tensor, mask: Tensor | None, microbatch: int | None) -> None:
        """Take in a batch, or each of its groups as a batch.

        Raises:
            ArgumentError: one value has no variance.
        """
        size = microbatch or max(1, len(x))
        masks = [None] * len(x) if mask is None else mask.split(size)
        for n, mean, m2 in map(moments, x.split(size), masks):
            if n == 1:
                raise ArgumentError(
                    "pool='paper' averages unbiased variances, so every batch (group, with "
                    "microbatch) must have at least 2 values a channel; layer "
                    f"{self._name!r} got an input of shape {tuple(x.shape)} with 1. Give larger "
                    "batches, or use pool='population'."
                )
            if n:
                self._batches += 1
                self._mean += mean
                self._var += m2 / (n - 1)

    def result(self) -> tuple[Tensor, Tensor] | None:
        """The two averages over batches."""
        if not self._batches:
            return None
        mean, var = self._mean / self._batches, self._var / self._batches
        return torch.as_tensor(mean), torch.as_tensor(var)
