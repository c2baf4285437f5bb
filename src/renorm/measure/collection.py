"""What all quantities share of the calls in train mode: the population, and a sample of groups."""

from typing import NamedTuple

import numpy as np

from renorm.measure.inputs import Call, Population
from renorm.measure.sampling import Reservoir


class Collected(NamedTuple):
    """The calls of a layer in train mode.

    Args:
        population: all values.
        rows: a sample of the groups that have two values or more; None if there is none.
        groups: of examples with statistics of their own, and at least one value.
        single: those of them with one value, which has no variance.
        least, most: values of a channel in a group.
    """

    population: Population
    rows: Call | None
    groups: int
    single: int
    least: int
    most: int


class Collector:
    """Pools the calls of a layer.

    Args:
        rows: groups to keep.
        seed: of the choice; layers with one seed keep the same groups if they are called alike.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._population: Population | None = None
        self._rows: Reservoir[Call] = Reservoir(rows, seed)
        self._groups = self._single = self._least = self._most = 0

    def take(self, call: Call) -> None:
        """Take in a call."""
        filled = call.values > 0
        if not filled.any():
            return
        call = Call(*(part[filled] for part in call))
        self._population = merged(self._population, call)
        for i, n in enumerate(call.values.astype(int)):
            self._least = n if not self._groups else min(self._least, n)
            self._most = max(self._most, n)
            self._groups += 1
            self._single += int(n == 1)
            if n > 1:
                self._rows.offer(Call(*(part[i : i + 1].copy() for part in call)))

    def result(self) -> Collected | None:
        """What was taken in; None if there was nothing."""
        if self._population is None:
            return None
        kept = self._rows.kept
        rows = Call(*map(np.concatenate, zip(*kept, strict=True))) if kept else None
        counts = (self._groups, self._single, int(self._least), int(self._most))
        return Collected(self._population, rows, *counts)


def merged(old: Population | None, call: Call) -> Population:
    """The population with the values of a call, which has some.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm".
    """
    with np.errstate(all="ignore"):
        n, weight = call.values.sum(), call.values[:, None]
        mean = (weight * call.mean).sum(0) / n
        var = (weight * (call.var + (call.mean - mean) ** 2)).sum(0) / n
        if old is None:
            return Population(int(n), mean, var)
        total = old.values + n
        delta = mean - old.mean
        within = (old.values * old.var + n * var) / total
        var = within + delta**2 * (old.values * n / total**2)
        return Population(int(total), old.mean + delta * (n / total), var)
