"""Which class becomes which, and what speaks against it.

A layer is converted by changing its class, as torch itself does for lazy modules and
parametrizations: tensors, hooks, flags, and every reference to it stay by construction.
"""

from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from renorm.nn import (
    BatchRenorm,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    BatchRenormAct,
    BatchRenormAct2d,
    CrossIterationBatchNorm,
    CrossIterationBatchNorm1d,
    CrossIterationBatchNorm2d,
    CrossIterationBatchNorm3d,
    CrossIterationBatchNormAct2d,
    LazyBatchRenorm1d,
    LazyBatchRenorm2d,
    LazyBatchRenorm3d,
)

Ours = BatchRenorm | CrossIterationBatchNorm
OURS = (BatchRenorm, CrossIterationBatchNorm)
Family = Literal["batch_renorm", "cross_iteration"]

_PAIRS: dict[type[_BatchNorm], type[BatchRenorm]] = {
    nn.BatchNorm1d: BatchRenorm1d,
    nn.BatchNorm2d: BatchRenorm2d,
    nn.BatchNorm3d: BatchRenorm3d,
    nn.LazyBatchNorm1d: LazyBatchRenorm1d,
    nn.LazyBatchNorm2d: LazyBatchRenorm2d,
    nn.LazyBatchNorm3d: LazyBatchRenorm3d,
}
_CROSS_ITERATION: dict[type[_BatchNorm], type[CrossIterationBatchNorm]] = {
    nn.BatchNorm1d: CrossIterationBatchNorm1d,
    nn.BatchNorm2d: CrossIterationBatchNorm2d,
    nn.BatchNorm3d: CrossIterationBatchNorm3d,
}
# a class of ours, or why there is none
_COUNTERPARTS: dict[Family, dict[Any, Any]] = {
    "batch_renorm": {**_PAIRS, nn.SyncBatchNorm: BatchRenorm},
    "cross_iteration": {
        **_CROSS_ITERATION,
        nn.SyncBatchNorm: "shares its statistics with other processes, which a window does not",
        _LazyNormBase: "has not seen an input yet: run the model once before",
    },
}
_ACTIVATED: dict[Family, type[Ours]] = {
    "batch_renorm": BatchRenormAct2d,
    "cross_iteration": CrossIterationBatchNormAct2d,
}
_ORIGINALS: dict[type[Ours], type[_BatchNorm]] = {
    **{ours: theirs for theirs, ours in _PAIRS.items()},
    **{ours: theirs for theirs, ours in _CROSS_ITERATION.items()},
}

# timm's norm + drop + act; recognised by name, because this package does not import timm
_TIMM = {"BatchNormAct2d", "SyncBatchNormAct"}

# what a class body may hold without changing what the layer does
_NEUTRAL = {
    "__init__",
    "reset_parameters",
    "extra_repr",
    "__constants__",
    "__module__",
    "__qualname__",
    "__doc__",
    "__annotations__",
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__conditional_annotations__",
    "__static_attributes__",
    "__firstlineno__",
    "__orig_bases__",
    "__parameters__",
    "__dict__",
    "__weakref__",
}

# a bound method of the old class, put on the instance by a wrapper, would survive the conversion
_REPLACEABLE = ("forward", "train", "eval")


def counterpart(layer: _BatchNorm, family: Family) -> type[Ours] | str:
    """Our class for a batch norm layer, or why there is none."""
    cls, classes = type_before_parametrizations(layer), _COUNTERPARTS[family]
    base = next((c for c in cls.__mro__ if c in classes or _is_timm(c)), None)
    if base is None:
        return "is none of torch's batch norm classes"
    if isinstance(classes.get(base), str):
        return classes[base]
    changes = _changes(cls, base) + _replaced(layer)
    if changes:
        return f"defines its own {', '.join(changes)}"
    if layer.eps <= 0:
        return f"has eps={layer.eps}, and what is divided by can be 0: must be above 0"
    if not _is_timm(base):
        return classes[base]
    if not (hasattr(layer, "drop") and hasattr(layer, "act")):
        return "has no drop and act"
    return _ACTIVATED[family]


def original(layer: Ours) -> type[_BatchNorm] | str:
    """The class a layer of ours came from, or torch's for its rank, or why there is none."""
    replaced = _replaced(layer)
    if replaced:
        return f"defines its own {', '.join(replaced)}"
    came_from: Any = vars(layer).get("_converted_from")
    if came_from is not None:
        became = getattr(came_from, "cls_to_become", None)  # of a lazy class
        return came_from if became is None or isinstance(layer, _LazyNormBase) else became
    cls = vars(layer).get("_fused_from", type_before_parametrizations(layer))
    if issubclass(cls, BatchRenormAct | CrossIterationBatchNormAct2d):
        return "was built with an activation, for which nn.BatchNorm has no place"
    if cls in OURS:
        return f"takes input of any rank; build it as {cls.__name__}1d, 2d or 3d"
    return _ORIGINALS.get(cls, "is a class of its own")


def become(layer: _BatchNorm, cls: type[_BatchNorm]) -> None:
    """Change the class of a layer; of a parametrized one, the base of its dynamic class."""
    if is_parametrized(layer):
        made = ("__dict__", "__weakref__")
        own = {name: value for name, value in vars(type(layer)).items() if name not in made}
        cls = type(f"Parametrized{cls.__name__}", (cls,), own)
    layer.__class__ = cls


def settings() -> set[str]:
    """The instance attributes that a layer of ours has and a batch norm layer has not."""
    theirs = set(vars(nn.BatchNorm1d(1, device="meta")))
    made = (BatchRenorm1d(1, device="meta"), CrossIterationBatchNorm1d(1, device="meta"))
    return {name for layer in made for name in vars(layer)} - theirs | {"_converted_from"}


def _is_timm(cls: type) -> bool:
    return cls.__name__ in _TIMM and cls.__module__.split(".")[0] == "timm"


def _changes(cls: type, base: type) -> list[str]:
    added = [c for c in cls.__mro__ if c not in base.__mro__]
    return sorted({name for c in added for name in vars(c)} - _NEUTRAL)


def _replaced(layer: nn.Module) -> list[str]:
    return [f"{name} (set on the instance)" for name in _REPLACEABLE if name in vars(layer)]
