"""Conditions: which examples come together in a gradient batch, and which share statistics.

A sampler yields index batches; in a batch, each run of ``group_size`` consecutive examples is a
group that is normalized together. The gradient is always that of the whole batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from renorm.errors import ArgumentError


class Sampler(Protocol):
    """An endless source of index batches."""

    @property
    def group_size(self) -> int:
        """Examples that share statistics."""
        ...

    def batches(self, labels: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Index batches (batch_size,) into ``labels`` (N,), drawn with ``generator``."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """Epochs in random order; the last examples of an epoch that fill no batch are left out.

    Args:
        batch_size: examples in a batch, at least 1 and at most the number of examples.
        group_size: examples that share statistics; divides the batch size.
    """

    batch_size: int
    group_size: int

    def __post_init__(self) -> None:
        check_sizes(self.batch_size, self.group_size)

    def batches(self, labels: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Index batches (batch_size,) into ``labels`` (N,), drawn with ``generator``.

        Raises:
            ArgumentError: a batch is larger than the data.
        """
        if self.batch_size > len(labels):
            raise ArgumentError(
                f"A batch must fit in the {len(labels)} examples there are, got a batch size of "
                f"{self.batch_size}."
            )
        while True:
            order = torch.randperm(len(labels), generator=generator)
            yield from order.split(self.batch_size)[: len(labels) // self.batch_size]


@dataclass(frozen=True)
class Clustered:
    """Each group holds few classes, while the batch of all groups is spread evenly over classes.

    Groups take their classes in turn, the least used first and ties at random: within a batch
    and over all batches so far, two classes differ by one group's share at most. A group has
    equally many examples of each of its classes; an example returns only when the others of its
    class have been used. So each synchronous worker of the paper's non-iid setting sees few
    classes, and the gradient as many as the groups have room for: 8 groups of one class hold 8
    of the 10 digits, equally. Source: Ioffe 2017, section 4.3.

    Args:
        batch_size: examples in a batch.
        group_size: examples that share statistics; divides the batch size.
        classes_per_group: different classes in a group; divides the group size.
    """

    batch_size: int
    group_size: int
    classes_per_group: int

    def __post_init__(self) -> None:
        check_sizes(self.batch_size, self.group_size)
        if self.classes_per_group < 1 or self.group_size % self.classes_per_group:
            raise ArgumentError(
                f"A group has equally many examples of each class, so its size must be a multiple "
                f"of {self.classes_per_group} classes, got groups of {self.group_size}. "
                "Change the group size."
            )

    def batches(self, labels: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Index batches (batch_size,) into ``labels`` (N,), drawn with ``generator``.

        Raises:
            ArgumentError: a class has too few examples for one group.
        """
        share = self.group_size // self.classes_per_group
        members = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
        smallest = min(len(indices) for indices in members)
        if len(members) < self.classes_per_group or smallest < share:
            raise ArgumentError(
                f"Groups of {self.group_size} take {share} examples of each of "
                f"{self.classes_per_group} classes, but there are {len(members)} classes and the "
                f"smallest has {smallest} examples. Choose smaller groups."
            )
        queues = [indices[:0] for indices in members]
        used = torch.zeros(len(members))
        while True:
            parts = []
            for label in self._classes(used, generator):
                if len(queues[label]) < share:
                    order = torch.randperm(len(members[label]), generator=generator)
                    queues[label] = members[label][order]
                parts.append(queues[label][:share])
                queues[label] = queues[label][share:]
            yield torch.cat(parts)

    def _classes(self, used: Tensor, generator: Generator) -> list[int]:
        """The classes of one batch, group by group; ``used`` counts them on."""
        chosen: list[int] = []
        here = torch.zeros_like(used)
        for _ in range(self.batch_size // self.group_size * self.classes_per_group):
            group = chosen[len(chosen) - len(chosen) % self.classes_per_group :]
            few_here = here == here.min()
            few_here[group] = False
            rank = used + torch.rand(len(used), generator=generator)
            rank[~few_here if few_here.any() else group] = torch.inf
            label = int(rank.argmin())
            chosen.append(label)
            here[label] += 1
            used[label] += 1
        return chosen


def check_sizes(batch_size: int, group_size: int, ranks: int = 1) -> None:
    """Refuse sizes that do not split a batch into equal groups, equally many for each rank."""
    if batch_size < 1 or group_size < 1 or batch_size % group_size:
        raise ArgumentError(
            f"A batch is split into equal groups, so the batch size must be a positive multiple "
            f"of the group size, got a batch of {batch_size} and groups of {group_size}."
        )
    if group_size == 1:
        raise ArgumentError(
            "A group of one example has hardly any statistics of its own, got a group size of 1. "
            "Give at least 2."
        )
    if batch_size // group_size % ranks:
        raise ArgumentError(
            f"Each of {ranks} processes takes equally many groups of a batch, so the batch size "
            f"must be a multiple of {ranks} x {group_size}, got {batch_size}. Change the batch "
            "size, the group size or the number of processes."
        )


View = Callable[[Tensor, int, Generator], Tensor]


@dataclass(frozen=True)
class Condition:
    """One way to put batches together.

    Args:
        name: as it is given on the command line and stored in records.
        about: one line for the help and below the table; ``{batch}`` and ``{group}`` are sizes.
        build: (batch size, group size) -> sampler.
        accumulate: whether each group has a forward of its own, as in gradient accumulation.
        needs_classes: whether examples must have labels.
        train_view: (inputs of a batch, group size, generator) -> what the net is trained on.
        test_view: the same for what it is tested on.
    """

    name: str
    about: str
    build: Callable[[int, int], Sampler]
    accumulate: bool = False
    needs_classes: bool = False
    train_view: View | None = None
    test_view: View | None = None

    @property
    def needs_images(self) -> bool:
        """Whether inputs must be (N, C, H, W): views change images."""
        return self.train_view is not None or self.test_view is not None


CONDITIONS = {
    entry.name: entry
    for entry in (
        Condition(
            "iid",
            "batches of {batch} at random, one group",
            lambda batch, group: Shuffled(batch, batch),
        ),
        Condition(
            "microbatch",
            "batches of {batch} at random, statistics per {group} examples",
            Shuffled,
        ),
        Condition(
            "clustered",
            "statistics per {group} examples of ONE class; groups take classes in turn",
            lambda batch, group: Clustered(batch, group, 1),
            needs_classes=True,
        ),
        Condition(
            "two_classes",
            "as clustered, each group from two classes (not in the default)",
            lambda batch, group: Clustered(batch, group, 2),
            needs_classes=True,
        ),
        Condition(
            "accumulation",
            "batches of {batch} at random, in {group} examples a forward, one step for all",
            Shuffled,
            accumulate=True,
        ),
    )
}
