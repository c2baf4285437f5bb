"""The normalizers a comparison chooses from: each replaces the nn.BatchNorm layers of a model."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm import limits
from renorm.conversion import convert
from renorm.errors import ArgumentError
from renorm.lab.placing import PerGroup as PerGroup
from renorm.lab.placing import Setting as Setting
from renorm.lab.placing import options_of, place
from renorm.names import check_options, known, parsed, with_options
from renorm.nn.normalizers import normalizers


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
        more: options that ``apply`` takes besides those it names, with their defaults.
    """

    name: str
    about: str
    apply: Callable[..., nn.Module]
    by_forward: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """The options it may be given, with their defaults."""
        taken = inspect.signature(self.apply).parameters.values()
        named = [one for one in taken if one.kind is not inspect.Parameter.VAR_KEYWORD]
        return {one.name: one.default for one in named[2:]} | dict(self.more)


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
    backward_momentum: float = 0.3,
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
    if not 0 <= burn_in <= 1:
        raise ArgumentError(
            f"burn_in is the part of a run that begins as batch norm, 0 to 1, got {burn_in!r}."
        )
    return convert(
        model,
        to="cross_iteration",
        example=setting.example,
        window=window,
        burn_in=int(burn_in * setting.steps),
        compensation=compensation,
    )


def _placed(name: str) -> "Normalizer":
    """An entry of ``renorm.normalizers`` as it is."""
    entry = normalizers()[name]
    about = f"{entry.about} ({entry.source})"
    return Normalizer(name, about, partial(place, name), more=options_of(name))


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
        _placed("group_norm"),
        Normalizer(
            "cross_iteration",
            "renorm's CrossIterationBatchNorm, window 8, each group an iteration of its own",
            _cross_iteration,
            by_forward=True,
        ),
        _placed("layer_norm"),
        _placed("none"),
        Normalizer(
            "slow_batch_norm",
            "batch_norm with momentum 0.01, batch renorm's update rate",
            _slow_batch_norm,
        ),
        _placed("instance_norm"),
        _placed("filter_response_norm"),
        _placed("variance_norm"),
        _placed("evonorm_b0"),
        _placed("evonorm_s0"),
        _placed("weight_norm"),
        _placed("scaled_weight_standardization"),
        _placed("lp_batch_norm"),
        _placed("noisy_batch_norm"),
    )
}


def find(name: str) -> Normalizer:
    """The normalizer of a name, which may have options: ``group_norm(groups=8)``.

    >>> find("group_norm( groups = 8 )").name
    'group_norm(groups=8)'

    Raises:
        ArgumentError: there is no such normalizer or option, or the text is no such name.
    """
    base, options = parsed("normalizer", name)
    entry = NORMALIZERS[known("normalizer", [base], NORMALIZERS)[0]]
    check_options("normalizer", entry.name, options, entry.options)
    for option, value in options.items():
        _check_kind(entry, option, value)
    if not options:
        return entry
    full = with_options(entry.name, options)
    return replace(entry, name=full, apply=partial(entry.apply, **options))


def _check_kind(entry: Normalizer, option: str, value: Any) -> None:
    """Refuse what is of another kind than the default, where None stands for a number."""
    default = entry.options[option]
    if value is None and (default is None or option == "momentum"):
        return
    kind, what = (int | float, "a number")
    if isinstance(default, bool):
        kind, what = bool, "True or False"
    elif isinstance(default, str):
        kind, what = str, "a text in quotes"
    if not isinstance(value, kind) or isinstance(value, bool) != isinstance(default, bool):
        raise ArgumentError(
            f"The option {option!r} of {entry.name!r} is {what}, such as {default!r} where it is "
            f"not given, got {value!r}."
        )


def names(given: Iterable[str]) -> tuple[str, ...]:
    """The names of normalizers as records have them, repetitions once.

    Raises:
        ArgumentError: no name, or as ``find``.
    """
    found = tuple(dict.fromkeys(find(one).name for one in given))
    return found or known("normalizer", (), NORMALIZERS)
