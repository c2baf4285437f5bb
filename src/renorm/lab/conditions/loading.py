"""The batches of a sampler for torch's DataLoader."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils import data

from renorm.errors import ArgumentError
from renorm.lab.conditions.base import Sampler
from renorm.lab.streams import stream


class BatchSampler(data.Sampler[list[int]]):
    """Batches of any sampler of this package, for ``DataLoader(batch_sampler=...)``.

    A seed and an epoch give the same batches on every machine and with any number of worker
    processes. As with ``DistributedSampler``, call ``set_epoch`` before each epoch, or all have the
    same order.

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from renorm.lab.conditions import PK
    >>> labels = torch.arange(10).repeat(20)
    >>> dataset = TensorDataset(torch.randn(200, 1, 8, 8), labels)
    >>> batches = BatchSampler(PK(classes=4, per_class=8), labels, steps=5)
    >>> loader = DataLoader(dataset, batch_sampler=batches)
    >>> for epoch in range(2):
    ...     batches.set_epoch(epoch)
    ...     for images, targets in loader:
    ...         pass  # one step of training
    >>> len(loader), images.shape, targets.bincount().max().item()
    (5, torch.Size([32, 1, 8, 8]), 8)

    ``state_dict`` says how far an epoch is; after ``load_state_dict`` the next one begins there.
    The epoch itself is the caller's, to be set again. torchdata's StatefulDataLoader keeps that
    state with its own. A DataLoader with worker processes asks for batches before they are used:
    there, count the steps yourself and load ``{"step": steps taken in the epoch}``.

    Args:
        sampler: what a batch is made of.
        labels: (N,), the class of each example of the data set, whole numbers; any, such as
            zeros, for samplers that do without.
        steps: batches in an epoch, at least 1. They need not cover the data set, nor cover it
            once.
        seed: of the order, at least 0.
        rank: which part of every batch to give, for data-parallel training: 0 to world_size - 1.
        world_size: how many parts; each has equally many whole groups, in their order.

    Raises:
        ArgumentError: a number outside its range, groups that do not divide among the ranks, or
            labels that the sampler cannot make batches of.
    """

    def __init__(
        self,
        sampler: Sampler,
        labels: Tensor | Sequence[int],
        steps: int,
        seed: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _at_least("steps", "how many batches an epoch has", steps, 1)
        _at_least("seed", "where the order comes from", seed, 0)
        groups = sampler.batch_size // sampler.group_size
        if world_size < 1 or groups % world_size:
            raise ArgumentError(
                f"Each rank takes equally many whole groups of a batch, got a world_size of "
                f"{world_size} and {groups} groups of {sampler.group_size} in a batch of "
                f"{sampler.batch_size}. Make the groups of the sampler smaller or the batch larger."
            )
        if not 0 <= rank < world_size:
            raise ArgumentError(f"rank is from 0 to world_size - 1 = {world_size - 1}, got {rank}.")
        self.sampler, self.labels = sampler, torch.as_tensor(labels)
        self.steps, self.seed = steps, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._step = self._start = 0
        next(sampler.batches(self.labels, Generator()))  # labels that do not fit raise here

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        self._step, self._start = self._start, 0
        size = self.sampler.batch_size // self.world_size
        part = slice(self.rank * size, (self.rank + 1) * size)
        batches = self.sampler.batches(self.labels, stream(self.seed, self.epoch))
        for batch in islice(batches, self._step, self.steps):
            self._step += 1
            yield batch[part].tolist()
        self._step = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration.

        Raises:
            ArgumentError: the epoch is below 0.
        """
        _at_least("epoch", "which order to take", epoch, 0)
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were handed out; 0 once it has ended."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Leave out the first ``state["step"]`` batches of the next iteration.

        Raises:
            ArgumentError: an epoch has fewer.
        """
        step = state["step"]
        if not 0 <= step <= self.steps:
            raise ArgumentError(
                f"step is how many of the {self.steps} batches of an epoch were handed out, got "
                f"{step}. Use the number of steps that the state was taken with."
            )
        self._step = self._start = step


def _at_least(name: str, meaning: str, value: int, least: int) -> None:
    if value < least:
        raise ArgumentError(f"{name} is {meaning}, at least {least}, got {value}.")
