"""Batch renorm with a backward pass that removes moving averages, not what the group has itself.

The gradient of Batch Renormalization, with r and d constant and g = dL/dy, is::

    dx = weight * r / sigma_B * (g - mean(g) - z * mean(g z)),    z = (x - mu_B) / sigma_B

with means over the group: whatever a group has in common is taken out of its gradient. Where the
examples of a group are of one class, that is what tells the class from others. Yet unclipped, y is
normalized by the running statistics, so the means that belong to it are those of the stream::

    dx = weight * r / sigma_B * (g - E[g] - z * E[g x_hat]),      x_hat = z * r + d

which leaves E[dx] and E[dx x] at 0 if mu and sigma are the averages of mu_B and sigma_B. Both
expectations are moving averages over backward passes, as in Moving Average Batch Normalization.

Source: Ioffe 2017 (arXiv 1702.03275) for the forward pass, Yan et al. 2020 (ICLR, Towards
Stabilizing Batch Statistics in Backward Propagation) for the averages; the formula is ours.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from renorm.errors import ArgumentError
from renorm.kernels import layout
from renorm.kernels.algebra import correction, updated
from renorm.kernels.call import Averages, Call, Outcome, accumulation_dtype, finished


class _Groups(NamedTuple):
    """The moments of groups of examples, about a centre near their mean."""

    size: int  # examples in a group, the last may have fewer
    values: Tensor  # (G, 1) per channel
    centre: Tensor  # (G, C)
    mean: Tensor  # (G, C), what is left of it: small
    var: Tensor  # (G, C), biased

    def whole_mean(self) -> Tensor:
        """The mean (G, C)."""
        return self.centre + self.mean


class _Context(NamedTuple):
    """The constants of a forward pass; (G, C) where not said otherwise."""

    size: int
    values: Tensor  # (G, 1)
    centre: Tensor
    mean: Tensor
    scale: Tensor  # 1 / sigma_B
    r: Tensor
    d: Tensor
    own: Tensor  # () bool: whether each group removes its own means
    momentum: float


def run(call: Call) -> Outcome:
    """Normalize ``call.x``; its backward pass reads and moves ``call.averages``."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        raise ArgumentError(
            "backward='moving' is defined by what a backward pass does, and is not to be had under "
            "torch.func or forward-mode differentiation. Build the layer with backward='batch'."
        )
    assert call.running_mean is not None
    assert call.running_var is not None
    assert call.averages is not None
    groups = _measured(call)
    dtype = groups.mean.dtype
    running_mean = call.running_mean.detach().to(dtype)
    running_var = call.running_var.detach().to(dtype)
    context = _context(groups, running_mean, running_var, call)
    averages = call.averages
    y: Any = _Normalized.apply(
        call.x, call.weight, call.bias, call.mask, averages.values, averages.passes, *context
    )
    y = finished(y, call).to(call.x.dtype)
    share = groups.values * (groups.values > 1)
    new_mean, new_var, counted = updated(
        groups.whole_mean(),
        groups.var,
        running_mean,
        running_var,
        call.momentum,
        call.eps,
        share / share.sum().clamp(min=1),
    )
    return Outcome(y, groups.whole_mean(), new_mean, new_var, counted)


def batch_mean(call: Call) -> Tensor:
    """The (G, C) means that ``run`` would return, bit for bit."""
    return _measured(call).whole_mean()


def _measured(call: Call) -> _Groups:
    x, mask, dtype = call.x.detach(), call.mask, accumulation_dtype(call.x.dtype)
    size = x.shape[0] if call.microbatch is None else call.microbatch
    data = torch.ones_like(x[:, :1], dtype=dtype) if mask is None else mask.unsqueeze(1).to(dtype)
    values = _sums(data, size)
    divisor = values.clamp(min=1)
    x = _masked(x.to(dtype), mask)
    centre = _sums(x, size) / divisor
    x = _masked(x - _per_example(centre, size, x), mask)
    mean = _sums(x, size) / divisor
    var = (_sums(x.square(), size) / divisor - mean.square()).clamp(min=0)
    return _Groups(size, values, centre, mean, var)


def _context(groups: _Groups, running_mean: Tensor, running_var: Tensor, call: Call) -> _Context:
    """A group of fewer than two values is normalized by the running statistics."""
    known = groups.values > 1
    running_mean = running_mean - groups.centre
    mean = torch.where(known, groups.mean, running_mean)
    var = torch.where(known, groups.var, running_var)
    r_max, d_max = call.bounds()
    r, d = correction(mean, var, running_mean, running_var, r_max, d_max, call.eps)
    own = removes_own(r_max, d_max, mean.device)
    scale = (var + call.eps).rsqrt()
    assert call.averages is not None
    return _Context(
        groups.size,
        groups.values,
        groups.centre,
        mean,
        scale,
        r,
        d,
        own,
        call.averages.momentum,
    )


class _Normalized(torch.autograd.Function):
    """y in the dtype of the statistics, and the gradient of the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mask: Tensor | None,
        averages: Tensor,
        passes: Tensor,
        *settings: Any,
    ) -> Tensor:
        c = _Context._make(settings)
        ctx.size, ctx.momentum = c.size, c.momentum
        ctx.averages, ctx.passes = averages, passes  # moved in place: not to be saved
        ctx.save_for_backward(x, weight, mask, *c[1:-1])
        factor, shift = c.r, c.d
        if weight is not None:
            factor, shift = factor * weight, shift * weight
        if bias is not None:
            shift = shift + bias
        z = _z(x, mask, c)
        y = z * _per_example(factor, c.size, z) + _per_example(shift, c.size, z)
        return _masked(y, mask)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        check_gradient(gradients[0])
        x, weight, mask, *settings = ctx.saved_tensors
        c = _Context._make((ctx.size, *settings, ctx.momentum))
        z = _z(x, mask, c)
        dy = _masked(gradients[0].to(z.dtype), mask)
        divisor = c.values.clamp(min=1)
        own_mean, own_slope = _sums(dy, c.size) / divisor, _sums(dy * z, c.size) / divisor
        own_x_hat = c.r * own_slope + c.d * own_mean  # mean(g x_hat)
        dbias, dweight = (c.values * own_mean).sum(0), (c.values * own_x_hat).sum(0)
        mean, slope = moved(
            Averages(ctx.averages, ctx.passes, c.momentum), dweight, dbias, c.values.sum()
        )
        known = c.own & (c.values > 1)  # the running statistics do not depend on x
        mean = torch.where(c.own, own_mean * known, mean)
        slope = torch.where(c.own, own_slope * known, slope)
        factor = c.scale * c.r
        if weight is not None:
            factor = factor * weight
        removed = _per_example(mean, c.size, z) + z * _per_example(slope, c.size, z)
        dx = _masked((dy - removed) * _per_example(factor, c.size, z), mask)
        wanted = ctx.needs_input_grad
        return (
            dx.to(x.dtype) if wanted[0] else None,
            dweight if wanted[1] else None,
            dbias if wanted[2] else None,
            *[None] * (len(wanted) - 3),
        )


def check_gradient(dy: Tensor) -> None:
    """Refuse a gradient that is to be differentiated itself, or is a batch of gradients."""
    if not torch.compiler.is_compiling() and layout.is_batch(dy):
        raise ArgumentError(
            "backward='moving' takes one gradient a pass: each moves the averages that it removes. "
            "Leave is_grads_batched=True out, or build the layer with backward='batch'."
        )
    if torch.is_grad_enabled():
        raise ArgumentError(
            "backward='moving' has no second derivative: what its backward pass removes are "
            "averages of earlier ones. Leave create_graph=True out, or build the layer with "
            "backward='batch'."
        )


def removes_own(r_max: float | Tensor, d_max: float | Tensor, device: torch.device) -> Tensor:
    """() bool: whether a group loses its own means after all, as where limits are (1, 0)."""
    own: Any = (r_max == 1) & (d_max == 0)
    if isinstance(own, Tensor):
        return own
    return torch.full((), own, dtype=torch.bool, device=device)


def moved(averages: Averages, dweight: Tensor, dbias: Tensor, values: Tensor) -> Tensor:
    """Move the averages in place towards the batch's, and return them as (2, C).

    The first ones are plain averages over passes so far, until the rate has fallen to momentum.
    Without data, or with anything that is not finite, nothing moves.

    Args:
        averages: before this pass.
        dweight: (C,), the sum of dy x_hat.
        dbias: (C,), the sum of dy.
        values: () per channel, that the sums are of.
    """
    kept, passes, momentum = averages
    new = torch.stack([dbias, dweight]) / values.clamp(min=1)
    rate = (1 / (passes + 1)).clamp(min=momentum)
    counted = new.isfinite().all() & (values > 0)
    after = torch.where(counted, kept + rate * (new - kept), kept)
    kept.copy_(after)
    passes.add_(counted)
    return after


def _z(x: Tensor, mask: Tensor | None, c: _Context) -> Tensor:
    """(x - mu_B) / sigma_B, and 0 at padding, which may hold anything."""
    x = x.to(c.mean.dtype)
    x = x - _per_example(c.centre, c.size, x) - _per_example(c.mean, c.size, x)
    return _masked(x * _per_example(c.scale, c.size, x), mask)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else torch.where(mask.unsqueeze(1), x, 0)


def _sums(x: Tensor, size: int) -> Tensor:
    """(N, C, *spatial) -> (G, C), the sum over each group's examples and positions."""
    sums = x.sum(list(range(2, x.dim()))) if x.dim() > 2 else x
    missing = -x.shape[0] % size
    return F.pad(sums, (0, 0, 0, missing)).unflatten(0, (-1, size)).sum(1)


def _per_example(t: Tensor, size: int, like: Tensor) -> Tensor:
    """(G, C) or (C,) -> what broadcasts against (N, C, *spatial)."""
    if t.dim() > 1 and t.shape[0] > 1:
        t = t.repeat_interleave(size, 0)[: like.shape[0]]
    return t.reshape(-1, t.shape[-1], *[1] * (like.dim() - 2))
