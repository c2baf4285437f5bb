"""Whether the loss in train mode depends on which examples share a batch."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from renorm.measure import examples
from renorm.measure.collection import Collected
from renorm.measure.inputs import Array
from renorm.measure.quantity import Plan, Quantity, Trial, number, told
from renorm.measure.records import MODEL, CompositionShift


class CompositionShiftQuantity(Quantity):
    """The loss by batch statistics on the batches as they come, and with examples reshuffled.

    A model that was trained on batches of a certain composition, such as two images of each of
    16 classes, can come to rely on it: then the same examples in batches put together at random
    have a higher loss in train mode. Without such a thing the two differ by chance alone.

    Source: Ioffe 2017 (arXiv 1702.03275), where batch norm is evaluated in train
    mode on batches composed as in training.
    """

    tries = True

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._composed: list[tuple[int, float]] = []  # examples and loss of each batch
        self._shuffled: list[tuple[int, float]] = []

    def take_trial(self, trial: Trial) -> Iterator[str]:
        """Put the examples of the kept batches together in other ways."""
        if trial.loss is None:
            yield "It compares losses: give loss=."
        elif len(trial.batches) < 2 or not examples.alike(trial.batches):
            yield (
                "It mixes the examples of two batches or more, whose tensors all have the "
                "examples in their first dimension, and nothing else that differs."
            )
        else:
            batches, losses = self._chosen(trial)
            self._composed = [(examples.count(b), v) for b, v in zip(batches, losses, strict=True)]
            generator = np.random.default_rng(self.plan.seed)
            for _ in range(self.plan.depth.shuffles):
                for batch in shuffled(batches, generator):
                    loss = trial.loss(trial.passes.run(batch, "batch"), batch)
                    self._shuffled.append((examples.count(batch), number(loss)))

    def records(self, collected: Mapping[str, Collected]) -> Iterator[CompositionShift]:
        """One for the model."""
        if self._shuffled:
            composed, shuffled = _mean(self._composed), _mean(self._shuffled)
            error = np.sqrt(composed[1] ** 2 + shuffled[1] ** 2)
            yield CompositionShift(
                layer=MODEL,
                batches=len(self._composed),
                shuffles=len(self._shuffled) // len(self._composed),
                loss_composed=told(composed[0]),
                loss_shuffled=told(shuffled[0]),
                shift=told(shuffled[0] - composed[0]),
                error=told(error),
            )

    def _chosen(self, trial: Trial) -> tuple[Sequence[Any], Sequence[Any]]:
        """At most half of all batches, which is what a survey may cost, and two at least."""
        most = len(trial.batches) if self.plan.depth.thorough else max(2, trial.total // 2)
        return trial.batches[:most], trial.losses[:most]


def shuffled(batches: Sequence[Any], generator: np.random.Generator) -> Iterator[Any]:
    """Batches of the same sizes with the same examples in random order."""
    sizes = [examples.count(batch) for batch in batches]
    everything = examples.joined(batches)
    order = generator.permutation(sum(sizes))
    for size, end in zip(sizes, accumulate(sizes), strict=True):
        yield examples.taken(everything, order[end - size : end].tolist())


def _mean(losses: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The mean over examples and its standard error, batches taken as independent."""
    weight, value = np.array(losses, float).T
    share: Array = weight / weight.sum()
    with np.errstate(all="ignore"):
        mean = float(share @ value)
        squares = float(share**2 @ (value - mean) ** 2)
    n = len(losses)
    return mean, float(np.sqrt(squares * n / (n - 1)))
