"""What a task is made of: examples that come in batches by index."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from renorm.errors import ArgumentError


class Examples(Protocol):
    """Examples that are fetched by index."""

    @property
    def labels(self) -> Tensor | None:
        """The class of each example, (N,) int64; None where examples have none."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs (n, ...) and the targets (n, ...) of the examples at ``indices`` (n,)."""
        ...


@dataclass(frozen=True, eq=False)
class TensorExamples:
    """Examples that lie in memory.

    Args:
        inputs: (N, ...).
        targets: (N, ...).
        labels: (N,) int64, for conditions that put batches together by class; None if there are
            no classes.
        prepare: what becomes of the inputs of a batch, such as uint8 to scaled float32.

    Raises:
        ArgumentError: the lengths differ.
    """

    inputs: Tensor
    targets: Tensor
    labels: Tensor | None = None
    prepare: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        lengths = [len(self.inputs), len(self.targets)]
        lengths += [] if self.labels is None else [len(self.labels)]
        if len(set(lengths)) > 1:
            raise ArgumentError(
                "Every example has one input, one target and at most one label, got "
                f"{' and '.join(map(str, lengths))} of them."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs, prepared, and the targets at ``indices``."""
        inputs = self.inputs[indices]
        return inputs if self.prepare is None else self.prepare(inputs), self.targets[indices]


@dataclass(frozen=True, eq=False)
class DatasetExamples:
    """A map-style data set of (input, target) pairs, collated as torch's DataLoader does it.

    Args:
        dataset: has a length, and pairs at 0 to length - 1.
        labels: as in ``TensorExamples``.
    """

    dataset: Any
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs and the targets at ``indices``, as tensors."""
        inputs, targets = default_collate([self.dataset[i] for i in indices.tolist()])
        return inputs, targets


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the examples, in the order of ``indices`` (n,)."""

    examples: Examples
    indices: Tensor

    @property
    def labels(self) -> Tensor | None:
        """Their classes."""
        labels = self.examples.labels
        return None if labels is None else labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs and targets at ``indices``, counted within the part."""
        return self.examples.batch(self.indices[indices])


def split(examples: Examples, every: int) -> tuple[Part, Part]:
    """All but each ``every``-th example, and those; of each class where there are classes.

    It draws no random numbers, so it is the same everywhere.

    Raises:
        ArgumentError: there are too few examples to leave some on both sides.
    """
    labels = examples.labels
    labels = torch.zeros(len(examples), dtype=torch.long) if labels is None else labels
    chosen = every_nth_of_each_class(labels, every)
    if chosen.all() or not chosen.any():
        raise ArgumentError(
            f"{len(examples)} examples of {len(labels.unique())} classes leave none to train on "
            f"when every {every}th of a class is held out. Give more examples of each class."
        )
    return Part(examples, torch.nonzero(~chosen).flatten()), Part(
        examples, torch.nonzero(chosen).flatten()
    )


def at_most(examples: Examples, count: int) -> Examples:
    """All examples, or every nth of each class if there are more than ``count``: about so many."""
    every = math.ceil(len(examples) / count)
    return examples if every <= 1 else split(examples, every)[1]


def every_nth_of_each_class(labels: Tensor, n: int) -> Tensor:
    """True (N,) at the first, n+1st, 2n+1st ... example of each class.

    >>> every_nth_of_each_class(torch.tensor([0, 1, 0, 1, 0]), 2)
    tensor([ True,  True, False, False,  True])
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[torch.nonzero(labels == label).flatten()[::n]] = True
    return chosen
