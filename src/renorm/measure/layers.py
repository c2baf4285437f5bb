"""The normalization layers of a model: ours, torch's, timm's, and those frozen for good."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils.parametrize import type_before_parametrizations

from renorm.errors import ArgumentError
from renorm.inspection import LayerSummary, summary
from renorm.measure.records import MODEL, LayerFacts
from renorm.nn import BatchRenorm, CrossIterationBatchNorm

_FROZEN = {"weight", "bias", "running_mean", "running_var"}
_EPS = 1e-5  # FrozenBatchNorm2d of detectron2 and others have it as a constant


def find(model: nn.Module) -> dict[str, nn.Module]:
    """The layers by their first names.

    Raises:
        ArgumentError: there is none, or one has not met its first input, or has no values.
    """
    found = {n or MODEL: m for n, m in model.named_modules() if normalizes(m)}
    if not found:
        scripted = any(isinstance(m, torch.jit.ScriptModule) for m in model.modules())
        give = "the model from before torch.jit" if scripted else "a model that has some"
        raise ArgumentError(
            f"{type(model).__name__} has no normalization layer to look at: batch norm of torch "
            "or timm, FrozenBatchNorm2d, batch renorm, or a cross-iteration layer. Give "
            f"{give}."
        )
    lazy = [name for name, layer in found.items() if _is_lazy(layer)]
    if lazy:
        raise ArgumentError(
            f"These layers have not met their first input: {', '.join(lazy)}. Initialize the "
            "model by a forward first."
        )
    empty = [name for name, layer in found.items() if any(t.is_meta for t in _tensors(layer))]
    if empty:
        raise ArgumentError(
            f"These layers are on the meta device and have no values: {', '.join(empty)}. Give the "
            "model after to_empty() and load_state_dict()."
        )
    return found


def is_frozen(layer: nn.Module) -> bool:
    """Whether it normalizes by its running statistics in train mode too."""
    if isinstance(layer, BatchRenorm | CrossIterationBatchNorm):
        return layer.frozen
    return not isinstance(layer, _BatchNorm)


def eps_of(layer: nn.Module) -> float:
    """What the layer adds to variances."""
    return float(getattr(layer, "eps", _EPS))


def statistics_of(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Running mean and variance (C,), not copied; None for a layer without."""
    mean, var = layer.running_mean, layer.running_var
    if isinstance(mean, Tensor) and isinstance(var, Tensor):
        return mean, var
    return None


def affine_of(layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias (C,), as they are; None for what there is not."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    return (
        weight.detach() if isinstance(weight, Tensor) else None,
        bias.detach() if isinstance(bias, Tensor) else None,
    )


class Seen:
    """What the first forward showed of the layers.

    Args:
        calls: of each layer.
        dtypes: of the inputs.
        sources: names of the modules whose outputs they took, and whether these add a bias; None
            for inputs that are no module's own output, or of several modules.
    """

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.dtypes: dict[str, str] = {}
        self.sources: dict[str, tuple[str, bool] | None] = {}


def facts(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[LayerFacts]:
    """What the layers are, one record each, before anything is run."""
    rows = {row.name or MODEL: row for row in summary(model).rows}
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name or MODEL)
    return [
        _facts(name, layer, rows.get(name), tuple(names[layer])) for name, layer in layers.items()
    ]


def completed(found: LayerFacts, seen: Seen) -> LayerFacts:
    """With what the first forward showed of the layer."""
    source, bias = seen.sources.get(found.layer) or (None, None)
    return replace(
        found,
        input_dtype=seen.dtypes.get(found.layer),
        source=source,
        source_bias=bias,
        calls=seen.calls.get(found.layer, 0),
    )


def _facts(name: str, layer: Any, row: LayerSummary | None, names: tuple[str, ...]) -> LayerFacts:
    weight, bias = affine_of(layer)
    own = [t for t in (*(statistics_of(layer) or ()), weight, bias) if t is not None]
    return LayerFacts(
        layer=name,
        type=type_before_parametrizations(layer).__name__,
        channels=channels_of(layer),
        eps=eps_of(layer),
        momentum=None if row is None else row.momentum,
        affine=weight is not None or bias is not None,
        statistics="frozen" if row is None else _statistics(row),
        training=layer.training,
        updates=None if row is None else row.step,
        limits="batch norm" if row is None else row.limits,
        r_max=1.0 if row is None else row.r_max,
        d_max=0.0 if row is None else row.d_max,
        microbatch=None if row is None else row.microbatch,
        sync="" if row is None else row.sync,
        learns=any(p.requires_grad for p in layer.parameters(recurse=False)),
        dtype=str(own[0].dtype).removeprefix("torch.") if own else "",
        input_dtype=None,
        source=None,
        source_bias=None,
        names=names,
        calls=0,
    )


def channels_of(layer: Any) -> int:
    """C."""
    return layer.num_features if isinstance(layer, _BatchNorm) else len(layer.running_mean)


def _statistics(row: LayerSummary) -> str:
    return row.statistics if row.statistics in ("updated", "frozen", "not updated") else "none"


def normalizes(module: nn.Module) -> bool:
    """Whether it is a layer that a survey looks at."""
    if isinstance(module, _BatchNorm):
        return True
    buffers = dict(module.named_buffers(recurse=False))  # _buffers is no dict of a scripted module
    # the class is torchvision's, detectron2's, timm's, and copied into many detectors
    return buffers.keys() >= _FROZEN and not isinstance(module, torch.jit.ScriptModule)


def _is_lazy(layer: nn.Module) -> bool:
    return any(isinstance(t, UninitializedParameter | UninitializedBuffer) for t in _tensors(layer))


def _tensors(layer: nn.Module) -> tuple[Tensor, ...]:
    return (*layer.parameters(recurse=False), *layer.buffers(recurse=False))


def adds_bias(module: nn.Module, output: Tensor) -> bool:
    """Whether a module of torch has a bias a channel that it adds to its output (N, C, *spatial).

    Linear layers have their features last, which are channels in two dimensions alone.
    """
    bias = getattr(module, "bias", None)
    by_channel = isinstance(module, _ConvNd | _NormBase | nn.GroupNorm)
    rows = isinstance(module, nn.Linear | nn.Bilinear) and output.dim() == 2
    return isinstance(bias, Tensor) and (by_channel or rows)
