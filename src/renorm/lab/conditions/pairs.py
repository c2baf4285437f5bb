"""Batches of P classes x K examples."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from renorm.errors import ArgumentError
from renorm.lab.conditions.base import members_of


@dataclass(frozen=True)
class PK:
    """P classes x K examples a batch, as losses on pairs and triplets need them.

    Classes come in random order, none again before all have been in a batch; within a class the
    examples do, too. Nothing is left out at the end of a round: what remains is dealt first in
    the next batch.

    Args:
        classes: P, different classes in a batch.
        per_class: K, different examples of each; at least 2, as one makes no pair. They stand
            next to each other.
        groups: parts of a batch with statistics of their own, each of whole classes, as when
            several processes have a part each; divides the number of classes. 1: the whole batch
            shares statistics.

    Raises:
        ArgumentError: a number is too small, or classes do not divide among groups.
    """

    classes: int
    per_class: int
    groups: int = 1

    def __post_init__(self) -> None:
        if self.classes < 1 or self.groups < 1 or self.classes % self.groups:
            raise ArgumentError(
                f"Groups have equally many whole classes, so the number of classes must be a "
                f"positive multiple of the number of groups, got {self.classes} classes and "
                f"{self.groups} groups."
            )
        if self.per_class < 2:
            raise ArgumentError(
                f"A class needs at least 2 examples in a batch to make a pair, got "
                f"{self.per_class}. In the condition pk this is the group size."
            )

    @property
    def batch_size(self) -> int:
        """P K, examples in a batch."""
        return self.classes * self.per_class

    @property
    def group_size(self) -> int:
        """Examples that share statistics: those of the whole batch where there is one group."""
        return self.batch_size // self.groups

    def batches(self, labels: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Index batches (P K,) into ``labels`` (N,), drawn with ``generator``, class by class.

        Raises:
            ArgumentError: there are fewer than P classes, a class has fewer than K examples, or
                labels are not whole numbers (N,).
        """
        members = members_of(labels)
        if len(members) < self.classes:
            raise ArgumentError(
                f"A batch takes {self.classes} different classes, but there are {len(members)}. "
                "Choose fewer classes in a batch: in the condition pk, a smaller batch or larger "
                "groups."
            )
        smallest = min(map(len, members))
        if smallest < self.per_class:
            raise ArgumentError(
                f"A batch takes {self.per_class} different examples of each of its classes, but "
                f"the smallest class has {smallest}. Choose fewer, or leave out small classes."
            )
        turns = _Deck(torch.arange(len(members)), generator)
        decks = [_Deck(indices, generator) for indices in members]
        while True:
            chosen = turns.deal(self.classes).tolist()
            yield torch.cat([decks[label].deal(self.per_class) for label in chosen])


class _Deck:
    """Items (n,) dealt at random: none again before all others were dealt."""

    def __init__(self, items: Tensor, generator: Generator) -> None:
        self._items, self._generator = items, generator
        self._left = items[:0]

    def deal(self, count: int) -> Tensor:
        """``count`` different items, at most n."""
        dealt, self._left = self._left[:count], self._left[count:]
        if len(dealt) < count:
            order = self._items[torch.randperm(len(self._items), generator=self._generator)]
            more = order[~torch.isin(order, dealt)][: count - len(dealt)]
            self._left = order[~torch.isin(order, more)]
            dealt = torch.cat([dealt, more])
        return dealt
