"""What every layer of ours does with an input before it is normalized, and in eval."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.errors import ArgumentError


class Normalizes(Protocol):
    """A layer of a given number of channels."""

    num_features: int


def check_input(layer: Normalizes, x: Tensor, ranks: tuple[int, ...]) -> None:
    """Refuse an input of another rank (() for any from 2 on) or number of channels."""
    if not isinstance(x, Tensor):  # a proxy of torch.fx knows no shape
        return
    fits = x.dim() in ranks if ranks else x.dim() >= 2
    if fits and x.size(1) == layer.num_features:
        return
    if ranks and not fits:
        allowed = " or ".join(f"{rank}-D" for rank in ranks)
        raise ArgumentError(
            f"{type(layer).__name__} takes {allowed} input (N, C, *spatial), got "
            f"{x.dim()}-D of shape {tuple(x.shape)}."
        )
    raise ArgumentError(
        f"{type(layer).__name__}({layer.num_features}) takes input with {layer.num_features} "
        f"channels in dimension 1, got shape {tuple(x.shape)}."
    )


def by_running_statistics(layer: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm's eval: the one operation on the layer's own five tensors."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # a training forward may move the buffers before this one's backward reads them
        mean, var = mean.clone(), var.clone()
    return F.batch_norm(x, mean, var, layer.weight, layer.bias, False, 0.0, layer.eps)
