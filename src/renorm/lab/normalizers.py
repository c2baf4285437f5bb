"""The normalizers a comparison chooses from: each replaces the nn.BatchNorm layers of a model."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm import limits
from renorm.conversion import convert

CHANNEL_GROUPS = 4


@dataclass(frozen=True)
class Setting:
    """What a normalizer is set up for.

    Args:
        group: examples that share statistics in a forward; None for all of them.
        steps: training steps of the run.
        example: an input of the model, (1, ...) or more.
    """

    group: int | None
    steps: int
    example: Tensor


@dataclass(frozen=True)
class Normalizer:
    """One way to normalize.

    Args:
        name: as it is given on the command line and stored in records.
        about: one line for the help.
        apply: (model with nn.BatchNorm layers, setting) -> model with this normalizer instead;
            it draws no random numbers.
        by_forward: whether it cannot normalize groups apart in one forward, so that each group
            has a forward of its own, as in gradient accumulation.
    """

    name: str
    about: str
    apply: Callable[[nn.Module, Setting], nn.Module]
    by_forward: bool = False


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


def _batch_norm(model: nn.Module, setting: Setting) -> nn.Module:
    group = setting.group
    return model if group is None else convert(model, to=lambda norm: PerGroup(norm, group))


def _slow_batch_norm(model: nn.Module, setting: Setting) -> nn.Module:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.01
    return _batch_norm(model, setting)


def _batch_renorm(model: nn.Module, setting: Setting) -> nn.Module:
    # running statistics settle in 3 / momentum updates, which must be a small part of the run
    momentum = min(0.1, max(0.01, 10 / setting.steps))
    schedule = limits.over(setting.steps)
    return convert(model, momentum=momentum, limits=schedule, microbatch=setting.group)


def _cross_iteration(model: nn.Module, setting: Setting) -> nn.Module:
    # a third of the run: with a tenth, one run in three went wrong at 2 examples
    # (docs/cross_iteration.md)
    burn_in = setting.steps // 3
    return convert(model, to="cross_iteration", example=setting.example, burn_in=burn_in)


def _group_norm(model: nn.Module, setting: Setting) -> nn.Module:
    return convert(model, to=lambda norm: _of_groups(norm, CHANNEL_GROUPS))


def _layer_norm(model: nn.Module, setting: Setting) -> nn.Module:
    return convert(model, to=lambda norm: _of_groups(norm, 1))


def _none(model: nn.Module, setting: Setting) -> nn.Module:
    return convert(model, to=lambda norm: nn.Identity())


def _of_groups(norm: _BatchNorm, groups: int) -> nn.GroupNorm:
    """Group norm with the layer's weight and bias, such as a weight of 0 that ends a block."""
    channels = norm.num_features
    new = nn.GroupNorm(math.gcd(groups, channels), channels, norm.eps, norm.affine)
    new.weight, new.bias = norm.weight, norm.bias
    return new


NORMALIZERS = {
    entry.name: entry
    for entry in (
        Normalizer(
            "batch_norm",
            "torch's nn.BatchNorm as the model has it, on each group in turn",
            _batch_norm,
        ),
        Normalizer(
            "batch_renorm",
            "renorm's BatchRenorm with the paper's limits scaled to the run",
            _batch_renorm,
        ),
        Normalizer(
            "group_norm",
            f"nn.GroupNorm, {CHANNEL_GROUPS} groups of channels: examples do not mix",
            _group_norm,
        ),
        Normalizer(
            "cross_iteration",
            "renorm's CrossIterationBatchNorm, window 8, each group an iteration of its own",
            _cross_iteration,
            by_forward=True,
        ),
        Normalizer("layer_norm", "nn.GroupNorm with a single group of channels", _layer_norm),
        Normalizer("none", "no normalization", _none),
        Normalizer(
            "slow_batch_norm",
            "batch_norm with momentum 0.01, batch renorm's update rate",
            _slow_batch_norm,
        ),
    )
}
