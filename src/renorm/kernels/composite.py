"""Batch renorm from differentiable torch operations: slower, and right everywhere.

It serves masks and microbatches, torch.func transforms, forward-mode AD, compilation (inductor
fuses it), and every device without a kernel of its own. Statistics are taken in float32 at
least, around a centre, so that a large offset cancels before anything is squared.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from renorm.kernels.algebra import correction, updated
from renorm.kernels.call import Call, Outcome, accumulation_dtype


class _Moments(NamedTuple):
    mean: Tensor  # (G, 1, C, 1, ...)
    var: Tensor  # (G, 1, C, 1, ...), biased
    values: Tensor  # values per channel: (G, 1, 1, 1, ...)


def run(call: Call) -> Outcome:
    """Normalize ``call.x`` in groups of ``microbatch`` examples (one group if None)."""
    parts = [_normalize(x, mask, call) for x, mask in _groups(call)]
    ys, moments = zip(*parts, strict=True)
    y = ys[0] if len(ys) == 1 else torch.cat(ys)
    mean = torch.cat([m.mean.detach().flatten(1) for m in moments])
    if call.running_mean is None or call.running_var is None:
        return Outcome(y, mean, None, None, None)
    var = torch.cat([m.var.detach().flatten(1) for m in moments])
    count = torch.cat([m.values.flatten(1) for m in moments])
    share = count * (count > 1)  # one value has no spread: it says nothing about sigma
    new_mean, new_var, counted = updated(
        mean,
        var,
        call.running_mean.detach().to(mean.dtype),
        call.running_var.detach().to(mean.dtype),
        call.momentum,
        call.eps,
        share / share.sum().clamp(min=1),
    )
    return Outcome(y, mean, new_mean, new_var, counted)


def batch_mean(call: Call) -> Tensor:
    """The (G, C) means that ``run`` would return, bit for bit."""
    means = [_moments(_wide(x.detach()), mask).mean.flatten(1) for x, mask in _groups(call)]
    return torch.cat(means)


def _groups(call: Call) -> list[tuple[Tensor, Tensor | None]]:
    """Views (G, n, C, *spatial) of x, and (G, n, 1, *spatial) of the mask.

    The full groups come first; a ragged last group is an entry of its own.
    """
    x, mask = call.x, None if call.mask is None else call.mask.unsqueeze(1)
    size = x.shape[0] if call.microbatch is None else call.microbatch
    full = x.shape[0] // size
    spans = []
    if full:
        spans.append((slice(0, full * size), (full, size)))
    if full * size < x.shape[0]:
        spans.append((slice(full * size, None), (1, x.shape[0] - full * size)))
    return [
        (x[span].unflatten(0, shape), None if mask is None else mask[span].unflatten(0, shape))
        for span, shape in spans
    ]


def _wide(x: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x.dtype))


def _moments(x: Tensor, mask: Tensor | None) -> _Moments:
    """Differentiable mean and biased variance of each group and channel of x (G, n, C, ...)."""
    dims = [1, *range(3, x.dim())]
    if mask is None:
        var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        count = x.shape[1] * x.shape[3:].numel()
        return _Moments(mean, var, mean.new_full((x.shape[0], *[1] * (x.dim() - 1)), count))
    count = mask.sum(dims, keepdim=True, dtype=x.dtype)
    divisor = count.clamp(min=1)
    centre = torch.where(mask, x, 0).detach().sum(dims, keepdim=True) / divisor
    centred = torch.where(mask, x - centre, 0)  # padding may hold anything, NaN included
    shift = centred.sum(dims, keepdim=True) / divisor
    var = centred.square().sum(dims, keepdim=True) / divisor - shift.square()
    return _Moments(centre + shift, var.clamp(min=0), count)


def _normalize(x: Tensor, mask: Tensor | None, call: Call) -> tuple[Tensor, _Moments]:
    """One stack of equal groups: (G, n, C, ...) in, (G * n, C, ...) and its moments out."""
    wide = _wide(x)
    moments = _moments(wide, mask)
    mean, var, r, d = moments.mean, moments.var, None, None
    shape = (-1, *[1] * (x.dim() - 3))  # (C,) against (G, n, C, ...)
    if call.running_mean is not None and call.running_var is not None:
        running_mean = call.running_mean.detach().to(wide.dtype).view(shape)
        running_var = call.running_var.detach().to(wide.dtype).view(shape)
        known = moments.values > 1
        mean = torch.where(known, mean, running_mean)
        var = torch.where(known, var, running_var)
        r, d = correction(
            mean.detach(), var.detach(), running_mean, running_var, call.r_max, call.d_max, call.eps
        )
    scale = (var + call.eps).rsqrt()
    if r is not None:
        scale = scale * r
    if call.weight is not None:
        weight = call.weight.to(wide.dtype).view(shape)
        scale = scale * weight
        d = None if d is None else d * weight
    y = (wide - mean) * scale
    if d is not None:
        y = y + d
    if call.bias is not None:
        y = y + call.bias.to(wide.dtype).view(shape)
    if mask is not None:
        y = torch.where(mask, y, 0)
    return y.to(x.dtype).flatten(0, 1), moments
