"""Evidence that the examples of a batch are not drawn independently of each other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from renorm.measure.collection import Collected
from renorm.measure.inputs import Array, Examples
from renorm.measure.quantity import Plan, Quantity, told
from renorm.measure.records import BatchDependence, Note, Record
from renorm.measure.sampling import Reservoir

Counts = NDArray[np.int64]

_AT_ONCE = 32  # permutations: more are no faster
_NEEDED = "It needs two batches, one of them of two examples or more."


class BatchDependenceQuantity(Quantity):
    """How much the means of batches spread, against what independent draws would give.

    Of the means z of examples over positions, in some channels, each in units of its deviation::

        ratio = sum_b N_b (z_b - z)^2 / (B - 1) / var(z)

    for B batches of N_b examples. If batches are independent draws, every assignment of the same
    examples to batches is as likely; so the p-values are ranks of the ratio among those of random
    assignments, and exact. They are of the layer's input by population statistics: by the batch,
    a layer before would tie the examples of a batch to each other. Of a layer that is called
    several times in a forward, the first call is taken.

    Source: Fisher 1935, "The Design of Experiments", for the permutation test; Phipson & Smyth
    2010 for adding one, so that no p-value is 0.
    """

    examines = True

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._kept: dict[str, Reservoir[Array]] = {}
        self._generator = np.random.default_rng(plan.seed)

    def take_examples(self, layer: str, examples: Examples) -> None:
        """The means of the examples of a batch, some of them in some channels."""
        depth = self.plan.depth
        if layer not in self._kept:
            self._kept[layer] = Reservoir(depth.example_batches, self.plan.seed)
        kept = self._kept[layer]
        means = examples.mean[examples.values > 0]
        place = kept.place()
        if place is None:
            return
        if len(means) > depth.examples:
            chosen = self._generator.choice(len(means), depth.examples, replace=False)
            means = means[chosen]
        width = means.shape[1]
        channels = np.unique(np.linspace(0, width - 1, min(width, depth.channels)).astype(int))
        kept.put(place, means[:, channels])

    def records(self, collected: Mapping[str, Collected]) -> Iterator[Record]:
        """One for each layer, or why there is none."""
        for name, kept in self._kept.items():
            found = dependence(kept.kept, self.plan.depth.permutations, self.plan.seed)
            if found is None:
                yield Note(name, "batch_dependence", _NEEDED)
            else:
                count = sum(map(len, kept.kept))
                yield BatchDependence(name, len(kept.kept), count, *found)


class Dependence(NamedTuple):
    """As ``BatchDependence`` has them."""

    channels: int
    ratio: float | None
    correlation: float | None
    p_more: float | None
    p_less: float | None
    permutations: int


def dependence(batches: Sequence[Array], permutations: int, seed: int) -> Dependence | None:
    """The test of batches of vectors (N_b, C); None if there are too few.

    Channels that are constant or not finite are left out.
    """
    batches = [batch for batch in batches if len(batch)]
    sizes = np.array([len(batch) for batch in batches])
    if len(sizes) < 2 or sizes.max() < 2:
        return None
    z = np.concatenate(batches)
    with np.errstate(all="ignore"):
        z = z - z.mean(0)
        deviation = np.sqrt((z**2).sum(0) / (len(z) - 1))
        z = (z / deviation)[:, np.isfinite(deviation) & (deviation > 0)]
    if not z.shape[1]:
        return Dependence(0, None, None, None, None, 0)
    ratio = float(_ratios(z[None], sizes)[0])
    generator = np.random.default_rng(seed)
    parts = range(0, permutations, _AT_ONCE)
    others = np.concatenate(
        [_ratios(_permuted(z, min(_AT_ONCE, permutations - i), generator), sizes) for i in parts]
    )
    rounding = 1e-10 * ratio  # an assignment that changes nothing gives the same up to this
    more, less = (others >= ratio - rounding).sum(), (others <= ratio + rounding).sum()
    return Dependence(
        z.shape[1],
        ratio,
        _correlation(ratio, sizes),
        float((1 + more) / (1 + permutations)),
        float((1 + less) / (1 + permutations)),
        permutations,
    )


def _permuted(z: Array, count: int, generator: np.random.Generator) -> Array:
    """(count, N, C): the rows of z (N, C) in random orders."""
    orders = np.tile(np.arange(len(z)), (count, 1))
    return z[generator.permuted(orders, axis=1)]


def _ratios(z: Array, sizes: Counts) -> Array:
    """The ratio of each of several assignments (P, N, C) to batches."""
    sums = np.add.reduceat(z, np.cumsum(sizes) - sizes, axis=1)
    squares = (sums**2 / sizes[:, None]).sum((1, 2))
    return squares / (len(sizes) - 1) / z.shape[2]


def _correlation(ratio: float, sizes: Counts) -> float | None:
    """The intraclass correlation by one-way analysis of variance."""
    n, groups = int(sizes.sum()), len(sizes)
    within = ((n - 1) - ratio * (groups - 1)) / (n - groups)
    size = (n - float((sizes**2).sum()) / n) / (groups - 1)
    below = ratio + (size - 1) * within
    return told((ratio - within) / below) if below > 0 else None
