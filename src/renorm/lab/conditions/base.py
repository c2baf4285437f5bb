"""What a condition is: a sampler, and what it does to images before the net sees them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from renorm.errors import ArgumentError


class Sampler(Protocol):
    """An endless source of index batches."""

    @property
    def batch_size(self) -> int:
        """Examples in a batch."""
        ...

    @property
    def group_size(self) -> int:
        """Examples that share statistics; divides the batch size."""
        ...

    def batches(self, labels: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Index batches (batch_size,) into ``labels`` (N,), drawn with ``generator``."""
        ...


View = Callable[[Tensor, int, Generator], Tensor]


@dataclass(frozen=True)
class Condition:
    """One way to put batches together.

    Args:
        name: as it is given on the command line and stored in records.
        about: one line for the help and below the table; ``{batch}`` and ``{group}`` are sizes.
        build: (batch size, group size) -> sampler.
        accumulate: whether each group has a forward of its own, as in gradient accumulation.
        devices: whether each group is on a device of its own, with the weights in common, and with
            running statistics and whatever else a layer remembers for itself.
        needs_classes: whether examples must have labels.
        train_view: (inputs of a batch, group size, generator) -> what the net is trained on.
        test_view: the same for what it is tested on.
    """

    name: str
    about: str
    build: Callable[[int, int], Sampler]
    accumulate: bool = False
    devices: bool = False
    needs_classes: bool = False
    train_view: View | None = None
    test_view: View | None = None

    @property
    def needs_images(self) -> bool:
        """Whether inputs must be (N, C, H, W): views change images."""
        return self.train_view is not None or self.test_view is not None


def check_sizes(batch_size: int, group_size: int, ranks: int = 1) -> None:
    """Refuse sizes that do not split a batch into equal groups, equally many for each rank.

    Raises:
        ArgumentError: a size below 1, a batch that is no multiple of the group, or groups that
            do not divide among the ranks.
    """
    if batch_size < 1 or group_size < 1 or batch_size % group_size:
        raise ArgumentError(
            f"A batch is split into equal groups, so the batch size must be a positive multiple "
            f"of the group size, got a batch of {batch_size} and groups of {group_size}."
        )
    if batch_size // group_size % ranks:
        raise ArgumentError(
            f"Each of {ranks} processes takes equally many groups of a batch, so the batch size "
            f"must be a multiple of {ranks} x {group_size}, got {batch_size}. Change the batch "
            "size, the group size or the number of processes."
        )


def check_labels(labels: Tensor) -> None:
    """Refuse labels that are not one whole number an example.

    Raises:
        ArgumentError: another shape than (N,), or a dtype that is not of whole numbers.
    """
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise ArgumentError(
            f"Labels are one whole number an example, (N,), got shape {tuple(labels.shape)} of "
            f"{labels.dtype}. Give the index of each example's class; where there are no classes, "
            "torch.zeros(N, dtype=torch.long)."
        )


def members_of(labels: Tensor) -> list[Tensor]:
    """The indices of each class, (n,) of n examples, classes in order.

    Raises:
        ArgumentError: as ``check_labels``.
    """
    check_labels(labels)
    return [torch.nonzero(labels == label).flatten() for label in labels.unique()]
