"""The normalizers a comparison chooses from, each built for a group size and a run length."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from renorm import limits
from renorm.nn import BatchRenorm2d

CHANNEL_GROUPS = 4


class PerGroup(nn.Module):
    """Apply a batch norm to each group of examples in turn, as a worker of its own would.

    In training, every group is normalized by its own statistics and moves the running ones once;
    in eval the groups make no difference and the batch is normalized in one call.

    Args:
        norm: a layer that takes statistics over the examples it is given.
        group: examples that share statistics, at least 1; the last group may be smaller.
    """

    def __init__(self, norm: nn.Module, group: int) -> None:
        super().__init__()
        self.norm = norm
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *spatial)."""
        if not self.training:
            return self.norm(x)
        return torch.cat([self.norm(part) for part in x.split(self.group)])


@dataclass(frozen=True)
class Normalizer:
    """One way to normalize.

    Args:
        name: as it is given on the command line and stored in records.
        about: one line for the help.
        build: (channels, examples a group, training steps of the run) -> layer.
    """

    name: str
    about: str
    build: Callable[[int, int, int], nn.Module]


def _batch_norm(channels: int, group: int, steps: int) -> nn.Module:
    return PerGroup(nn.BatchNorm2d(channels), group)


def _slow_batch_norm(channels: int, group: int, steps: int) -> nn.Module:
    return PerGroup(nn.BatchNorm2d(channels, momentum=0.01), group)


def _batch_renorm(channels: int, group: int, steps: int) -> nn.Module:
    return BatchRenorm2d(channels, limits=limits.over(steps), microbatch=group)


def _group_norm(channels: int, group: int, steps: int) -> nn.Module:
    return nn.GroupNorm(CHANNEL_GROUPS, channels)


NORMALIZERS = {
    entry.name: entry
    for entry in (
        Normalizer(
            "batch_norm",
            "torch's nn.BatchNorm2d with its defaults, on each group in turn",
            _batch_norm,
        ),
        Normalizer(
            "batch_renorm",
            "renorm.BatchRenorm2d with the paper's limits scaled to the run",
            _batch_renorm,
        ),
        Normalizer(
            "group_norm",
            f"nn.GroupNorm, {CHANNEL_GROUPS} groups of channels: examples do not mix",
            _group_norm,
        ),
        Normalizer(
            "slow_batch_norm",
            "batch_norm with momentum 0.01, batch renorm's update rate (not in the default)",
            _slow_batch_norm,
        ),
    )
}
