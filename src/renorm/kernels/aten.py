"""Batch renorm at native cost: three ATen operations and one autograd.Function.

With r and d constant, ``y = BN(x; gamma * r, beta + gamma * d)``, so the native normalization and
its native backward serve, and only the input is saved. Source: Ioffe 2017, section 3.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from renorm.kernels import joint, moving
from renorm.kernels.algebra import affine, correction, product, updated
from renorm.kernels.call import Averages, Call, Outcome, accumulation_dtype

FUSES = False  # whoever runs it adds residual and ReLU


def obstacle(call: Call) -> str | None:
    """Why the native operations cannot take a call on their device, or None if they can."""
    if torch.compiler.is_compiling():
        return "the compiler fuses plain operations itself"
    if call.mask is not None:
        return "a mask needs weighted statistics"
    if call.microbatch is not None and call.microbatch < call.x.shape[0]:
        return "microbatches need statistics per group"
    if call.group is None and call.x.numel() == call.x.shape[1]:
        return "one value per channel takes the running statistics"
    return None


def run(call: Call) -> Outcome:
    """Normalize the whole batch as one group; no mask, no microbatch."""
    if call.group is not None:
        return joint.run(call, *moments(call.x))
    x = call.x
    mean, var = moments(x)
    if call.running_mean is None or call.running_var is None:
        y = _Normalize.apply(x, call.weight, call.bias, mean, var, None, None, call.eps)
        return Outcome(y, mean.unsqueeze(0), None, None, None)
    running_mean = call.running_mean.detach().to(mean.dtype)
    running_var = call.running_var.detach().to(mean.dtype)
    r_max, d_max = call.bounds()
    r, d = correction(mean, var, running_mean, running_var, r_max, d_max, call.eps)
    if call.averages is None:
        y = _Normalize.apply(x, call.weight, call.bias, mean, var, r, d, call.eps)
    else:
        own = moving.removes_own(r_max, d_max, x.device)
        given = (x, call.weight, call.bias, mean, var, r, d)
        y = _NormalizeMoving.apply(*given, call.eps, call.averages, own)
    statistics = updated(mean, var, running_mean, running_var, call.momentum, call.eps)
    return Outcome(y, mean.unsqueeze(0), *statistics)


def batch_mean(call: Call) -> Tensor:
    """The (1, C) mean that ``run`` would return, bit for bit."""
    mean, var = moments(call.x)
    if call.group is not None:
        mean = joint.moments(call, mean, var).mean
    return mean.unsqueeze(0)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of x (N, C, *spatial), without gradient.

    The native reduction is accurate for planes that lie together. In every other layout it loses
    the variance of data far from zero (relative error 8e-5 at mean/std 1e4), so there x is
    first moved by the mean of its first example.
    """
    x = x.detach()
    # scratch buffers (never the layer's own: 0 * inf would poison them) ask for wide statistics
    scratch = x.new_zeros(x.shape[1], dtype=accumulation_dtype(x.dtype))
    if x.numel() == 0:  # this process has no part in a joint batch
        return scratch, scratch
    if x.dim() > 2 and x.is_contiguous():
        mean, var = torch.batch_norm_update_stats(x, scratch, scratch.clone(), 0.0)
        return mean, var
    first = x[0].to(scratch.dtype)
    shift = first if x.dim() == 2 else first.mean(list(range(1, x.dim() - 1)))
    moved = x - shift.view(-1, *[1] * (x.dim() - 2))
    mean, var = torch.batch_norm_update_stats(moved, scratch, scratch.clone(), 0.0)
    return mean + shift, var


class _Normalize(torch.autograd.Function):
    """``gamma * ((x - mu_B) / sigma_B * r + d) + beta``; mu_B and sigma_B depend on x, r and d not.

    The backward is made of differentiable operations, so it can be differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        r: Tensor | None,
        d: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), r, d)
        ctx.eps = eps
        ctx.bias_dtype = None if bias is None else bias.dtype
        scale, shift = affine(weight, bias, r, d, mean.dtype)
        return torch.batch_norm(x, scale, shift, mean, var, False, 0.0, eps, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, r, d = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        dx, dweight, dbias = gradients(grads[0], x, weight, mean, invstd, r, d, ctx.eps, needs)
        dbias = dbias.to(ctx.bias_dtype) if dbias is not None else None
        return dx, dweight, dbias, None, None, None, None, None


class _NormalizeMoving(torch.autograd.Function):
    """The same output; the gradient loses averages, or where ``own`` is true the batch's own means.

    The formula is that of ``renorm.kernels.moving``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        r: Tensor,
        d: Tensor,
        eps: float,
        averages: Averages,
        own: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, r, d, own)
        ctx.eps, ctx.averages = eps, averages  # moved in place: not to be saved
        ctx.bias_dtype = None if bias is None else bias.dtype
        scale, shift = affine(weight, bias, r, d, mean.dtype)
        return torch.batch_norm(x, scale, shift, mean, var, False, 0.0, eps, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        moving.check_gradient(dy)
        x, weight, mean, var, r, d, own = ctx.saved_tensors
        values = mean.new_full((), x[:, :1].numel())
        dz, dbias = joint.sums_of(dy, x, mean, var, ctx.eps)
        dweight = r * dz + d * dbias
        removed, slope = moving.moved(ctx.averages, dweight, dbias, values)
        removed = torch.where(own, dbias / values, removed)
        slope = torch.where(own, dz / values, slope)
        invstd = (var + ctx.eps).rsqrt()
        factor = r * invstd if weight is None else r * invstd * weight
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx = None
        if need_x:
            dx = joint.mapped(dy, x, mean, factor, -factor * invstd * slope, -factor * removed)
        return (
            dx,
            None if weight is None or not need_weight else dweight.to(weight.dtype),
            dbias.to(ctx.bias_dtype) if need_bias else None,
            *[None] * 7,
        )


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    r: Tensor | None,
    d: Tensor | None,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, those that are needed, by differentiable operations."""
    need_x, need_weight, need_bias = needs
    dx, dw, db = torch.ops.aten.native_batch_norm_backward(
        dy,
        x,
        product(weight, r, mean.dtype),
        None,
        None,
        mean,
        invstd,
        True,
        eps,
        [need_x, need_weight, need_weight or need_bias],
    )
    dweight = None
    if need_weight:
        assert weight is not None
        dweight = (dw if r is None else r * dw + d * db).to(weight.dtype)
    return (dx if need_x else None), dweight, (db if need_bias else None)
