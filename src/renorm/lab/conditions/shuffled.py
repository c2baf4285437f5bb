"""Epochs in some order, cut into batches: at random, class by class, and clips of frames."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from renorm.errors import ArgumentError
from renorm.lab.conditions.base import check_labels, check_sizes


@dataclass(frozen=True)
class Shuffled:
    """Epochs in random order; the last examples of an epoch that fill no batch are left out.

    Args:
        batch_size: examples in a batch, at least 1 and at most the number of examples.
        group_size: examples that share statistics; divides the batch size.

    Raises:
        ArgumentError: the sizes do not divide.
    """

    batch_size: int
    group_size: int

    def __post_init__(self) -> None:
        check_sizes(self.batch_size, self.group_size)

    def batches(self, labels: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Index batches (batch_size,) into ``labels`` (N,), drawn with ``generator``.

        Raises:
            ArgumentError: a batch is larger than the data, or labels are not whole numbers (N,).
        """
        _check_fit(self.batch_size, labels)
        while True:
            order = torch.randperm(len(labels), generator=generator)
            yield from order.split(self.batch_size)[: len(labels) // self.batch_size]


@dataclass(frozen=True)
class Sorted:
    """Epochs that go through the data class by class, so the gradient is of one or two classes.

    Each epoch has a new order of the classes and of the examples within them. A batch is cut from
    that order: where no class is smaller than a batch, it holds two classes at most. The groups
    are the consecutive parts of the batch, as in ``Clustered``, so that the two conditions differ
    in the gradient alone. The last examples of an epoch that fill no batch are left out.

    Args:
        batch_size: examples in a batch, at least 1 and at most the number of examples.
        group_size: examples that share statistics; divides the batch size.

    Raises:
        ArgumentError: the sizes do not divide.
    """

    batch_size: int
    group_size: int

    def __post_init__(self) -> None:
        check_sizes(self.batch_size, self.group_size)

    def batches(self, labels: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Index batches (batch_size,) into ``labels`` (N,), drawn with ``generator``.

        Raises:
            ArgumentError: a batch is larger than the data, or labels are not whole numbers (N,).
        """
        _check_fit(self.batch_size, labels)
        names, kinds = labels.unique(return_inverse=True)
        while True:
            turns = torch.randperm(len(names), generator=generator)
            order = torch.randperm(len(labels), generator=generator)
            stream = order[turns[kinds[order]].argsort(stable=True)]
            yield from stream.split(self.batch_size)[: len(labels) // self.batch_size]


@dataclass(frozen=True)
class Frames:
    """Each group is a clip: one example, repeated; ``views.filmed`` makes the copies differ.

    So a batch holds batch_size / group_size different examples. Clips come in random order, each
    example once an epoch; the last ones of an epoch that fill no batch are left out.

    Args:
        batch_size: frames in a batch.
        group_size: frames in a clip, which share statistics; at least 2, divides the batch size.

    Raises:
        ArgumentError: the sizes do not divide, or a clip is a single frame.
    """

    batch_size: int
    group_size: int

    def __post_init__(self) -> None:
        check_sizes(self.batch_size, self.group_size)
        if self.group_size == 1:
            raise ArgumentError(
                "A clip has several frames, got a group size of 1. Give at least 2, or use "
                "Shuffled (microbatch) for examples that stand alone."
            )

    def batches(self, labels: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Index batches (batch_size,) into ``labels`` (N,), drawn with ``generator``.

        Raises:
            ArgumentError: a batch has more clips than there are examples, or labels are not whole
                numbers (N,).
        """
        check_labels(labels)
        clips = self.batch_size // self.group_size
        if clips > len(labels):
            raise ArgumentError(
                f"A batch of {self.batch_size} in clips of {self.group_size} frames takes {clips} "
                f"examples, but there are {len(labels)}. Choose a smaller batch or larger groups."
            )
        for chosen in Shuffled(clips, 1).batches(labels, generator):
            yield chosen.repeat_interleave(self.group_size)


def _check_fit(batch_size: int, labels: Tensor) -> None:
    check_labels(labels)
    if batch_size > len(labels):
        raise ArgumentError(
            f"A batch must fit in the {len(labels)} examples there are, got a batch size of "
            f"{batch_size}."
        )
