"""The processes that share the batches of one run: one alone, or those of a torchrun launch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from renorm.distributed import settle

T = TypeVar("T")
CPU = torch.device("cpu")
SEEDS_APART = 1_000_003  # torch's generator on the CPU takes 32 bits of a seed


@dataclass(frozen=True)
class Ranks:
    """One process among those that share a run; they are torch's default process group.

    A process alone exchanges nothing, and every method gives back what it was given.

    Args:
        rank: of this process, 0 to ``world - 1``.
        world: how many processes there are.
        device: where this one trains.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    def share(self, batch: Tensor) -> Tensor:
        """The part of this rank of a batch (n, ...): n / world consecutive entries."""
        return batch if self.world == 1 else batch.tensor_split(self.world)[self.rank]

    def joined(self, shares: Tensor) -> Tensor:
        """The shares of all ranks, equally long, one after another: ``share`` undone."""
        if self.world == 1:
            return shares
        parts = [torch.empty_like(shares) for _ in range(self.world)]
        dist.all_gather(parts, shares.contiguous())
        return torch.cat(parts)

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to call in training: DistributedDataParallel as it comes, where there are others.

        Gradients are then the mean over the ranks, and every forward begins with the running
        statistics of rank 0. From here on each rank draws random numbers (dropout) of its own.
        """
        if self.world == 1:
            return model
        if self.rank:
            torch.manual_seed(torch.initial_seed() + SEEDS_APART * self.rank)
        return DistributedDataParallel(model)

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over the ranks; not finite in all of them if it is not in one."""
        if self.world == 1:
            return value.item()
        total = value.detach().to(torch.float64, copy=True)
        dist.all_reduce(total)
        return total.item() / self.world

    def first(self, compute: Callable[[], T]) -> T:
        """What ``compute`` returns in rank 0, which alone calls it, in every rank."""
        if self.world == 1:
            return compute()
        told: list[T | None] = [compute() if self.rank == 0 else None]
        dist.broadcast_object_list(told, device=self.device)
        return told[0]  # pyright: ignore[reportReturnType]

    def align(self, model: nn.Module) -> None:
        """Give the buffers of rank 0, running statistics among them, to every rank."""
        if self.world == 1:
            return
        settle(model)
        with torch.no_grad():
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


ALONE = Ranks()
