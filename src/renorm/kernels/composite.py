"""Batch renorm from differentiable torch operations: slower, and right everywhere.

It serves masks and microbatches, torch.func transforms, forward-mode AD, compilation (inductor
fuses it), and every device without a kernel of its own. The input is first moved to about zero
in float32 at least, so that a large offset cancels before anything is squared.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from renorm.kernels import exchange, moving
from renorm.kernels.algebra import correction, updated
from renorm.kernels.call import Call, Outcome, accumulation_dtype, finished

FUSES = True


class _Centred(NamedTuple):
    """One stack of equal groups, moved to about zero, and its moments about that centre."""

    x: Tensor  # (G, n, C, ...), 0 where masked
    centre: Tensor  # (G, 1, C, 1, ...), constant
    mean: Tensor  # (G, 1, C, 1, ...), small
    var: Tensor  # (G, 1, C, 1, ...), biased
    values: Tensor  # values per channel: (G, 1, 1, 1, ...)
    joint_mean: Tensor | None = None  # (1, C), of all processes, rounded alike in each

    def whole_mean(self) -> Tensor:
        """The mean (G, C), without gradient."""
        if self.joint_mean is not None:
            return self.joint_mean
        return (self.centre + self.mean.detach()).flatten(1)


class _Statistics(NamedTuple):
    """What a stack of groups is normalized by; shapes as in ``_Centred``."""

    mean: Tensor
    var: Tensor
    r: Tensor | None
    d: Tensor | None


def run(call: Call) -> Outcome:
    """Normalize ``call.x`` in groups of ``microbatch`` examples (one group if None)."""
    if call.averages is not None:
        return moving.run(call)
    groups = [(_measured(x, mask, call), mask) for x, mask in _groups(call)]
    ys = [
        _normalized(group, mask, call, _corrected(group, call)).flatten(0, 1)
        for group, mask in groups
    ]
    y = finished(ys[0] if len(ys) == 1 else torch.cat(ys), call).to(call.x.dtype)
    mean = torch.cat([g.whole_mean() for g, _ in groups])
    if call.running_mean is None or call.running_var is None:
        return Outcome(y, mean, None, None, None)
    var = torch.cat([g.var.detach().flatten(1) for g, _ in groups])
    values = torch.cat([g.values.flatten(1) for g, _ in groups])
    share = values * (values > 1)  # one value has no spread: it says nothing about sigma
    new_mean, new_var, counted = updated(
        mean,
        var,
        call.running_mean.detach().to(mean.dtype),
        call.running_var.detach().to(mean.dtype),
        call.momentum,
        call.eps,
        share / share.sum().clamp(min=1),
    )
    joint = values.sum() if call.group is not None else None
    return Outcome(y, mean, new_mean, new_var, counted, joint)


def batch_mean(call: Call) -> Tensor:
    """The (G, C) means that ``run`` would return, bit for bit."""
    if call.averages is not None:
        return moving.batch_mean(call)
    groups = [_measured(x.detach(), mask, call) for x, mask in _groups(call)]
    return torch.cat([g.whole_mean() for g in groups])


def moments(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """What ``run`` would normalize by, had the processes of a group nothing to do with it.

    Returns:
        ``(values, mean, var)`` of the groups of examples: values per channel (G,), which may be 0
        under a mask, mean and biased variance (G, C), without gradient.
    """
    groups = [_centred(x.detach(), mask) for x, mask in _groups(call._replace(group=None))]
    values, mean, var = (
        torch.cat([one(g).flatten(1) for g in groups])
        for one in (lambda g: g.values, _Centred.whole_mean, lambda g: g.var)
    )
    return values.squeeze(1), mean, var


def repeated(
    call: Call, mean: Tensor, var: Tensor, r: Tensor, d: Tensor, renormalizes: bool
) -> Tensor:
    """The normalized x of an earlier run, with r and d as they were: they do not depend on x.

    Args:
        call: that run's x, weight, bias, mask, microbatch and eps.
        mean: (G, C), what each group was normalized by; constant where the group has fewer than
            two values and there were running statistics, else computed again from x.
        var: (G, C), likewise.
        r: (G, C).
        d: (G, C).
        renormalizes: whether there were running statistics.
    """
    ys, first = [], 0
    for x, mask in _groups(call):
        group = _measured(x, mask, call)
        rows, shape = slice(first, first + x.shape[0]), group.mean.shape
        known = (group.values > 1) | (not renormalizes)
        statistics = _Statistics(
            torch.where(known, group.mean, mean[rows].view(shape) - group.centre),
            torch.where(known, group.var, var[rows].view(shape)),
            r[rows].view(shape),
            d[rows].view(shape),
        )
        ys.append(_normalized(group, mask, call, statistics).flatten(0, 1))
        first = rows.stop
    return ys[0] if len(ys) == 1 else torch.cat(ys)


def gradients(
    y: Tensor, dy: Tensor, x: Tensor | None, weight: Tensor | None, create_graph: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight, of those that are given, from a repeated y."""
    wanted = [t for t in (x, weight) if t is not None]
    if not wanted:
        return None, None
    found = iter(torch.autograd.grad(y, wanted, dy.to(y.dtype), create_graph=create_graph))
    return None if x is None else next(found), None if weight is None else next(found)


def _groups(call: Call) -> list[tuple[Tensor, Tensor | None]]:
    """Views (G, n, C, *spatial) of x, and (G, n, 1, *spatial) of the mask.

    The full groups come first; a ragged last group is an entry of its own.
    """
    x, mask = call.x, None if call.mask is None else call.mask.unsqueeze(1)
    if call.group is not None:
        return [(x.unsqueeze(0), None if mask is None else mask.unsqueeze(0))]
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


def _measured(x: Tensor, mask: Tensor | None, call: Call) -> _Centred:
    """A stack of groups, or of a joint batch this process's part, with differentiable moments."""
    if call.group is None:
        return _centred(x, mask)
    if mask is None and x.numel() == 0:  # no mean of its own
        mask = torch.ones_like(x[:, :, :1], dtype=torch.bool)
    part = _centred(x, mask)
    own_mean = (part.centre.double() + part.mean.double()).flatten()
    values, mean, var, _ = exchange.joint(
        part.values, own_mean, part.var.flatten(), call.group, call.sums
    )
    dtype, shape = part.mean.dtype, part.mean.shape
    return part._replace(
        mean=(mean.view(shape) - part.centre).to(dtype),
        var=var.view(shape).to(dtype),
        values=values.view_as(part.values).to(dtype),
        joint_mean=mean.detach().to(dtype).unsqueeze(0),
    )


def _centred(x: Tensor, mask: Tensor | None) -> _Centred:
    """Centre each group and channel of x (G, n, C, ...), and take differentiable moments."""
    x = x.to(accumulation_dtype(x.dtype))
    dims = [1, *range(3, x.dim())]
    if mask is None:
        centre = x.detach().mean(dims, keepdim=True)
        x = x - centre
        var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        values = x.shape[1] * x.shape[3:].numel()
        ones = mean.new_ones((x.shape[0], *[1] * (x.dim() - 1)))
        return _Centred(x, centre, mean, var, ones * values)
    values = mask.sum(dims, keepdim=True, dtype=x.dtype)
    divisor = values.clamp(min=1)
    centre = torch.where(mask, x, 0).detach().sum(dims, keepdim=True) / divisor
    x = torch.where(mask, x - centre, 0)  # padding may hold anything, NaN included
    mean = x.sum(dims, keepdim=True) / divisor
    var = x.square().sum(dims, keepdim=True) / divisor - mean.square()
    return _Centred(x, centre, mean, var.clamp(min=0), values)


def _corrected(group: _Centred, call: Call) -> _Statistics:
    """What one stack of groups is normalized by: its own moments against the running ones."""
    if call.running_mean is None or call.running_var is None:
        return _Statistics(group.mean, group.var, None, None)
    shape = (-1, *[1] * (group.x.dim() - 3))  # (C,) against (G, n, C, ...)
    running_mean = call.running_mean.detach().to(group.mean.dtype).view(shape) - group.centre
    running_var = call.running_var.detach().to(group.mean.dtype).view(shape)
    known = group.values > 1
    mean = torch.where(known, group.mean, running_mean)
    var = torch.where(known, group.var, running_var)
    r, d = correction(
        mean.detach(), var.detach(), running_mean, running_var, *call.bounds(), call.eps
    )
    return _Statistics(mean, var, r, d)


def _normalized(
    group: _Centred, mask: Tensor | None, call: Call, statistics: _Statistics
) -> Tensor:
    """The output (G, n, C, ...) of one stack of equal groups, in the dtype of the moments."""
    mean, var, r, d = statistics
    dtype, shape = mean.dtype, (-1, *[1] * (group.x.dim() - 3))
    scale = (var + call.eps).rsqrt()
    if r is not None:
        scale = scale * r
    if call.weight is not None:
        weight = call.weight.to(dtype).view(shape)
        scale = scale * weight
        d = None if d is None else d * weight
    y = (group.x - mean) * scale
    if d is not None:
        y = y + d
    if call.bias is not None:
        y = y + call.bias.to(dtype).view(shape)
    return y if mask is None else torch.where(mask, y, 0)
