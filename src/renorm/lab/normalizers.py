"""The normalizers a comparison chooses from: each replaces the nn.BatchNorm layers of a model."""

import ast
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm import limits
from renorm.conversion import convert
from renorm.errors import ArgumentError
from renorm.lab.names import known

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
        apply: (model with nn.BatchNorm layers, setting, **options) -> model with this normalizer
            instead; it draws no random numbers.
        by_forward: whether it cannot normalize groups apart in one forward, so that each group
            has a forward of its own, as in gradient accumulation.
    """

    name: str
    about: str
    apply: Callable[..., nn.Module]
    by_forward: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options it may be given."""
        return tuple(inspect.signature(self.apply).parameters)[2:]


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


def _batch_renorm(
    model: nn.Module,
    setting: Setting,
    momentum: float | None = None,
    r_max: float = 3.0,
    d_max: float = 5.0,
    ramp: bool = True,
    backward: str = "batch",
    backward_momentum: float = 0.1,
) -> nn.Module:
    # running statistics settle in 3 / momentum updates, which must be a small part of the run
    momentum = min(0.1, max(0.01, 10 / setting.steps)) if momentum is None else momentum
    schedule = limits.fixed(r_max, d_max)
    if ramp:
        paper = limits.over(setting.steps)
        schedule = limits.Limits(
            replace(paper.r_max, high=float(r_max)), replace(paper.d_max, high=float(d_max))
        )
    return convert(
        model,
        momentum=momentum,
        limits=schedule,
        microbatch=setting.group,
        backward=backward,
        backward_momentum=backward_momentum,
    )


def _cross_iteration(
    model: nn.Module,
    setting: Setting,
    window: int = 8,
    burn_in: float = 1 / 3,
    compensation: str = "first_order",
) -> nn.Module:
    # a third of the run: with a tenth, one run in three went wrong at 2 examples
    # (docs/cross_iteration.md)
    return convert(
        model,
        to="cross_iteration",
        example=setting.example,
        window=window,
        burn_in=int(burn_in * setting.steps),
        compensation=compensation,
    )


def _group_norm(model: nn.Module, setting: Setting, groups: int = CHANNEL_GROUPS) -> nn.Module:
    return convert(model, to=lambda norm: _of_groups(norm, groups))


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


def find(name: str) -> Normalizer:
    """The normalizer of a name, which may have options: ``group_norm(groups=8)``.

    >>> find("group_norm( groups = 8 )").name
    'group_norm(groups=8)'

    Raises:
        ArgumentError: there is no such normalizer or option, or the text is no such name.
    """
    base, options = _parsed(name)
    entry = NORMALIZERS[known("normalizer", [base], NORMALIZERS)[0]]
    for option in options:
        if option not in entry.options:
            raise ArgumentError(
                f"The normalizer {entry.name!r} has no option {option!r}; it has "
                f"{', '.join(entry.options) or 'none'}."
            )
    if not options:
        return entry
    shown = ", ".join(f"{option}={value!r}" for option, value in sorted(options.items()))
    return replace(entry, name=f"{entry.name}({shown})", apply=partial(entry.apply, **options))


def names(given: Iterable[str]) -> tuple[str, ...]:
    """The names of normalizers as records have them, repetitions once.

    Raises:
        ArgumentError: no name, or as ``find``.
    """
    found = tuple(dict.fromkeys(find(one).name for one in given))
    return found or known("normalizer", (), NORMALIZERS)


def _parsed(name: str) -> tuple[str, dict[str, Any]]:
    """The name alone, and its options, which are plain values."""
    base, bracket, _ = name.partition("(")
    if not bracket:
        return name, {}
    text = f"f({name.strip().partition('(')[2]}"
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or ast.unparse(call.func) != "f":
            raise ValueError("options have names")
        options = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords if one.arg}
        if len(options) < len(call.keywords):
            raise ValueError("options have names")
    except (SyntaxError, ValueError) as error:
        raise ArgumentError(
            f"Options of a normalizer are plain values by name, such as group_norm(groups=8), got "
            f"{name!r} ({error})."
        ) from error
    return base, options
