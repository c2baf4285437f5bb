"""What is tried: each fix does to a model what its code says."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.calibration import calibrate
from renorm.conversion import convert, to_batchnorm
from renorm.doctor.trying.momentum import averaging, lengthen, of_reference
from renorm.errors import ArgumentError
from renorm.limits import over
from renorm.nn import BatchRenorm, CrossIterationBatchNorm, freeze

Forward = Callable[[nn.Module, Any], Any]
AFTER = "# after training"


class Means(NamedTuple):
    """What a fix is made with.

    Args:
        steps: of training after it.
        batches: to train on.
        forward: how to call the model; None for the usual way.
    """

    steps: int
    batches: Sequence[Any]
    forward: Forward | None


class Applied(NamedTuple):
    """A model with a fix, and code that makes it of ``model``, ``batches`` and ``forward``."""

    model: nn.Module
    code: str


class Fix(NamedTuple):
    """A fix: how it is applied to a model, in place.

    Args:
        apply: does it.
        trains: whether training is part of it.
        settles: whether the statistics are measured anew after training. In so short a run moving
            averages are of weights that have changed, which is no fault of the fix.
    """

    apply: Callable[[nn.Module, Means], Applied]
    trains: bool
    settles: bool = False


def as_it_is(model: nn.Module, means: Means) -> Applied:
    """Change nothing."""
    return Applied(model, "")


def settled(model: nn.Module, means: Means) -> Applied:
    """With statistics that are measured anew; as they are where no layer has any to measure."""
    if not averaging(model):
        return Applied(model, "")
    calibrate(model, means.batches, forward=means.forward)
    return Applied(model, _calibration(means))


def after_training(code: str, means: Means) -> str:
    """The code of a fix, and what comes after training."""
    return f"{code}\n\n{AFTER}\n{_calibration(means)}"


def _calibration(means: Means) -> str:
    forward = "" if means.forward is None else ", forward=forward"
    return f"renorm.calibrate(model, batches{forward})"


def _calibrated(model: nn.Module, means: Means) -> Applied:
    calibrate(model, means.batches, forward=means.forward)
    return Applied(model, f"import renorm\n\n{_calibration(means)}")


def _longer_ema(model: nn.Module, means: Means) -> Applied:
    changed = lengthen(model, means.steps)
    momenta = sorted(set(changed.values()))
    if len(momenta) == 1 and len(changed) == len(averaging(model)):
        code = (
            "from torch.nn.modules.batchnorm import _BatchNorm\n\n"
            "for layer in model.modules():\n"
            "    if isinstance(layer, _BatchNorm) and layer.momentum:\n"
            f"        layer.momentum = {momenta[0]}"
        )
        return Applied(model, code)
    lines = [
        f"for name in {[name for name, m in changed.items() if m == momentum]}:\n"
        f"    model.get_submodule(name).momentum = {momentum}"
        for momentum in momenta
    ]
    return Applied(model, "\n".join(lines))


def _batch_renorm(model: nn.Module, means: Means) -> Applied:
    _check_convertible(model)
    momentum = of_reference(means.steps)
    code = (
        "import renorm\n\n"
        f"steps = {means.steps}  # that were tried; give those of your run\n"
        "model = renorm.convert(\n"
        f"    model, limits=renorm.limits.over(steps), momentum={momentum}\n)"
    )
    return Applied(convert(model, limits=over(means.steps), momentum=momentum), code)


def _cross_iteration(model: nn.Module, means: Means) -> Applied:
    _check_convertible(model)
    if means.forward is not None:
        code = 'import renorm\n\nmodel = renorm.convert(model, to="cross_iteration")'
        return Applied(convert(model, to="cross_iteration"), code)
    first = means.batches[0]
    if isinstance(first, tuple | list):
        example, given = tuple(first[:1]), "tuple(next(iter(batches))[:1])"
    else:
        example, given = first, "next(iter(batches))"
    code = (
        f"import renorm\n\nexample = {given}\n"
        'model = renorm.convert(model, to="cross_iteration", example=example)'
    )
    return Applied(convert(model, to="cross_iteration", example=example), code)


def _frozen(model: nn.Module, means: Means) -> Applied:
    try:
        measured = settled(model, means).code  # what is frozen had better be right
    except ValueError as error:
        if "more than 1 value" not in str(error):
            raise
        measured = ""  # such batches have no statistics, and those that are there have to do
    first = f"{measured}\n" if measured else ""
    code = f"import renorm\n\n{first}model = renorm.freeze(renorm.convert(model))"
    return Applied(freeze(convert(model)), code)


def _group_norm(model: nn.Module, means: Means) -> Applied:
    def group_norm(layer: _BatchNorm) -> nn.Module:
        groups, channels = math.gcd(32, layer.num_features), layer.num_features
        norm = nn.GroupNorm(groups, channels, layer.eps, layer.affine)
        norm.load_state_dict(dict(layer.named_parameters()), strict=False)
        return norm

    code = (
        "import math\n\nimport renorm\nfrom torch import nn\n\n\n"
        "# the weights were made for batch norm and do not fit: train anew\n"
        "def group_norm(layer):\n"
        "    groups, channels = math.gcd(32, layer.num_features), layer.num_features\n"
        "    norm = nn.GroupNorm(groups, channels, layer.eps, layer.affine)\n"
        "    norm.load_state_dict(dict(layer.named_parameters()), strict=False)\n"
        "    return norm\n\n\n"
    )
    if any(isinstance(m, BatchRenorm | CrossIterationBatchNorm) for m in model.modules()):
        code += "model = renorm.to_batchnorm(model)\n"
        model = to_batchnorm(model)
    return Applied(
        convert(model, to=group_norm), code + "model = renorm.convert(model, to=group_norm)"
    )


FIXES: Mapping[str, Fix] = {
    "calibrate": Fix(_calibrated, False),
    "longer_ema": Fix(_longer_ema, True),
    "batch_renorm": Fix(_batch_renorm, True, True),
    "cross_iteration": Fix(_cross_iteration, True, True),
    "frozen": Fix(_frozen, True),
    "group_norm": Fix(_group_norm, True),
}
DEFAULT = tuple(name for name in FIXES if name != "group_norm")


def named(fixes: str | Iterable[str] | None) -> tuple[str, ...]:
    """The names of the fixes to try, in the order of ``FIXES``; None for the default ones."""
    if fixes is None:
        return DEFAULT
    asked = [fixes] if isinstance(fixes, str) else list(fixes)
    unknown = [name for name in asked if name not in FIXES]
    if unknown or not asked:
        raise ArgumentError(
            f"fixes are among {', '.join(FIXES)}, got {fixes!r}. Give names of them, or None for "
            "all but group_norm, for which the weights have to be trained anew."
        )
    return tuple(name for name in FIXES if name in asked)


def _check_convertible(model: nn.Module) -> None:
    ours = (BatchRenorm, CrossIterationBatchNorm)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if norms and all(isinstance(m, ours) for m in norms):
        raise ArgumentError(
            f"All {len(norms)} layers are {type(norms[0]).__name__} or the like already, so there "
            "is none to convert. For another one call renorm.to_batchnorm before."
        )
