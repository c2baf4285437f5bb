"""Groups of few classes in batches of many, and such groups taken apart again."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from renorm.errors import ArgumentError
from renorm.lab.conditions.base import check_sizes, members_of


@dataclass(frozen=True)
class Clustered:
    """Each group holds few classes, while the batch of all groups is spread evenly over classes.

    Groups take their classes in turn, the least used first and ties at random: within a batch
    and over all batches so far, two classes differ by one group's share at most. A group has
    equally many examples of each of its classes; an example returns only when the others of its
    class have been used, but for those at the end that fill no share. So each synchronous worker
    of the paper's non-iid setting sees few classes, and the gradient as many as the groups have
    room for: 8 groups of one class hold 8 of the 10 digits, equally. Source: Ioffe 2017,
    section 4.3.

    Args:
        batch_size: examples in a batch.
        group_size: examples that share statistics; at least 2, divides the batch size.
        classes_per_group: different classes in a group; divides the group size.

    Raises:
        ArgumentError: the sizes do not divide, or a group is a single example.
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
        if self.group_size == 1:
            raise ArgumentError(
                "A group of one example is of one class whatever the order, got a group size of 1. "
                "Give at least 2, or use Shuffled (microbatch)."
            )

    def batches(self, labels: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Index batches (batch_size,) into ``labels`` (N,), drawn with ``generator``.

        Raises:
            ArgumentError: a class has too few examples for one group, there are too few classes,
                or labels are not whole numbers (N,).
        """
        share = self.group_size // self.classes_per_group
        members = members_of(labels)
        smallest = min(map(len, members), default=0)
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


@dataclass(frozen=True)
class Halved:
    """The batches of ``Clustered``, each group parted into two that have the classes alike.

    The control of the paper: the gradient is of the same examples, in the same order of groups,
    but those that share statistics are no longer alike. Source: Ioffe 2017, section 4.3.

    Args:
        whole: what draws the batches; each group has an even number of examples of each class.

    Raises:
        ArgumentError: the number is odd.
    """

    whole: Clustered

    def __post_init__(self) -> None:
        share = self.whole.group_size // self.whole.classes_per_group
        if share % 2:
            raise ArgumentError(
                f"A group is parted into halves with equally many examples of each class, got "
                f"groups with {share} of each. Choose groups with an even number."
            )

    @property
    def batch_size(self) -> int:
        """Examples in a batch."""
        return self.whole.batch_size

    @property
    def group_size(self) -> int:
        """Examples that share statistics: half a group."""
        return self.whole.group_size // 2

    def batches(self, labels: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Index batches (batch_size,) into ``labels`` (N,), drawn with ``generator``.

        Raises:
            ArgumentError: as ``Clustered.batches``.
        """
        for batch in self.whole.batches(labels, generator):
            groups = batch.view(-1, self.group_size, 2)
            yield groups.transpose(1, 2).flatten()
