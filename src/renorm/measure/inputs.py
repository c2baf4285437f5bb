"""What goes into a normalization layer: moments of its groups, and of its examples, in float64."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.measure.calls import fetch, look, moments
from renorm.measure.layers import eps_of, is_frozen, statistics_of

Array = NDArray[np.float64]


class Call(NamedTuple):
    """A call of a layer in train mode: G groups of examples with statistics of their own.

    The layer gives ``slope * (x - mean) + offset``, before its weight and bias.
    """

    values: Array  # (G,) per channel
    mean: Array  # (G, C)
    var: Array  # (G, C), biased
    slope: Array  # (G, C)
    offset: Array  # (G, C)


class Examples(NamedTuple):
    """The examples of a call, over their positions."""

    values: Array  # (N,) per channel
    mean: Array  # (N, C)
    squares: Array  # (N, C), sum of squared deviations from the example's own mean


class Population(NamedTuple):
    """All values that a layer was given."""

    values: int  # per channel
    mean: Array  # (C,)
    var: Array  # (C,), biased


def mask_of(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The mask among the arguments of a layer of ours."""
    mask = args[1] if len(args) > 1 else kwargs.get("mask")
    return mask if isinstance(mask, Tensor) else None


def call_of(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Call:
    """The moments of an input (N, C, *spatial) and what the layer makes of it."""
    seen = look(layer, x, mask) if isinstance(layer, _BatchNorm) else None
    if seen is None:
        return _without_reference(layer, x, mask)
    s = fetch([seen])[0].statistics
    values, mean, var, used_mean, used_var, mu, running_var, r_max, d_max = (
        np.asarray(t, np.float64) for t in s
    )
    deviation = np.sqrt(used_var + seen.eps)
    with np.errstate(all="ignore"):  # NaN and inf are part of what is seen
        if not seen.limited:
            slope = 1 / deviation
            return Call(values, mean, var, slope, (mean - used_mean) * slope)
        sigma = np.sqrt(running_var + seen.eps)
        slope = np.clip(deviation / sigma, 1 / r_max, r_max) / deviation
        d = np.clip((used_mean - mu) / sigma, -d_max, d_max)
        return Call(values, mean, var, slope, (mean - used_mean) * slope + d)


def _without_reference(layer: Any, x: Tensor, mask: Tensor | None) -> Call:
    """Of a layer that is frozen, given single values, or has no running statistics."""
    kind = x.device.type
    with torch.autocast(kind, enabled=False):
        found = moments(layer, x.detach(), mask)
    values, mean, var = (t.cpu().double().numpy() for t in found)
    running = statistics_of(layer)
    with np.errstate(all="ignore"):
        if running is None or not (is_frozen(layer) or not layer.training):
            slope = 1 / np.sqrt(var + eps_of(layer))
            return Call(values, mean, var, slope, np.zeros_like(mean))
        mu, running_var = (t.detach().cpu().double().numpy() for t in running)
        slope = np.broadcast_to(1 / np.sqrt(running_var + eps_of(layer)), mean.shape)
        return Call(values, mean, var, slope, (mean - mu) * slope)


def examples_of(x: Tensor, mask: Tensor | None) -> Examples:
    """The moments of every example of an input (N, C, *spatial) where mask (N, *spatial) is True.

    Deviations are taken in the input's accumulation dtype and summed in float64.
    """
    x = x.detach().flatten(2) if x.dim() > 2 else x.detach().unsqueeze(2)
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    wide = x.dtype if x.device.type == "mps" else torch.float64
    if mask is None:
        kept, values = None, x.new_full((len(x), 1), x.shape[2], dtype=wide)
    else:
        kept = mask.flatten(1).unsqueeze(1)
        values = kept.sum(2).to(wide)
        x = x.masked_fill(~kept, 0)
    mean = x.sum(2, dtype=wide) / values.clamp(min=1)
    apart = x - mean.to(x.dtype).unsqueeze(2)  # exact near the mean, for large offsets too
    if kept is not None:
        apart = apart.masked_fill(~kept, 0)
    rounded = mean - mean.to(x.dtype).to(wide)
    squares = (
        torch.linalg.vector_norm(apart, dim=2, dtype=wide).square() - values * rounded.square()
    )
    found = (values[:, 0], mean, squares.clamp(min=0))
    return Examples(*(t.cpu().double().numpy() for t in found))
