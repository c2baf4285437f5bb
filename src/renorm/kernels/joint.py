"""Batch renorm of a batch that lies in several processes, at the cost of native operations.

One exchange forward, of the moments; one backward, of the two sums that a normalization's gradient
needs. Each process gets the rows of what one process would compute for all examples together: the
gradient is that of the sum of all their losses, and those of weight and bias are their own terms
of it, as of any parameter (DistributedDataParallel averages them).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from renorm.collectives import Group
from renorm.kernels import composite
from renorm.kernels.algebra import affine, correction, product, updated
from renorm.kernels.call import Call, Outcome
from renorm.kernels.exchange import Joint, gradient_of_x, joint
from renorm.kernels.layout import is_last_derivative


class _Statistics(NamedTuple):
    """What x is normalized by, (C,); constants where the joint batch has fewer than two values."""

    mean: Tensor
    var: Tensor
    r: Tensor | None
    d: Tensor | None
    values: Tensor  # () per channel, of all processes
    known: Tensor  # () bool: whether mean and var are those of the batch
    sums: Tensor  # (2 C + 1,) float64 over all processes


class _Kept(NamedTuple):
    """What a backward needs to know of its forward."""

    x: Tensor
    weight: Tensor | None
    statistics: _Statistics
    eps: float
    group: Group


def moments(call: Call, mean: Tensor, var: Tensor) -> Joint:
    """The joint moments, in the dtype of this process's ``mean`` and ``var``."""
    x, dtype = call.x, mean.dtype
    n = torch.full((), x[:, :1].numel(), dtype=torch.float64, device=x.device)
    values, mean, var, sums = joint(n, mean, var, call.group)
    return Joint(values.to(dtype), mean.to(dtype), var.to(dtype), sums)


def run(call: Call, mean: Tensor, var: Tensor) -> Outcome:
    """Normalize x, whose own moments are given, by those of the joint batch; no mask."""
    values, mean, var, sums = moments(call, mean, var)
    batch_mean = mean.unsqueeze(0)
    if call.running_mean is None or call.running_var is None:
        known = torch.ones_like(values, dtype=torch.bool)
        y = _normalized(call, _Statistics(mean, var, None, None, values, known, sums))
        return Outcome(y, batch_mean, None, None, None, values)
    running_mean = call.running_mean.detach().to(mean.dtype)
    running_var = call.running_var.detach().to(mean.dtype)
    known = values > 1
    used_mean = torch.where(known, mean, running_mean)
    used_var = torch.where(known, var, running_var)
    r, d = correction(used_mean, used_var, running_mean, running_var, *call.bounds(), call.eps)
    y = _normalized(call, _Statistics(used_mean, used_var, r, d, values, known, sums))
    new_mean, new_var, counted = updated(
        batch_mean,
        var.unsqueeze(0),
        running_mean,
        running_var,
        call.momentum,
        call.eps,
        known.to(mean.dtype).view(1, 1),
    )
    return Outcome(y, batch_mean, new_mean, new_var, counted, values)


def _normalized(call: Call, statistics: _Statistics) -> Tensor:
    return _Normalize.apply(call.x, call.weight, call.bias, statistics, call.eps, call.group)


class _Normalize(torch.autograd.Function):
    """``gamma * ((x - mu_B) / sigma_B * r + d) + beta``; every x has a part in mu_B and sigma_B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: _Statistics,
        eps: float,
        group: Group,
    ) -> Tensor:
        mean, var, r, d = statistics[:4]
        ctx.save_for_backward(x, weight, *statistics)
        ctx.settings = eps, group
        ctx.bias_dtype = None if bias is None else bias.dtype
        scale, shift = affine(weight, bias, r, d, mean.dtype)
        return torch.batch_norm(x, scale, shift, mean, var, False, 0.0, eps, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *statistics = ctx.saved_tensors
        kept = _Kept(x, weight, _Statistics(*statistics), *ctx.settings)
        work = _gradients if is_last_derivative(grads[0]) else _differentiable
        dx, dweight, dbias = work(grads[0], kept, ctx.needs_input_grad[:3])
        if dweight is not None:
            dweight = dweight.to(weight.dtype)
        dbias = None if dbias is None else dbias.to(ctx.bias_dtype)
        return dx, dweight, dbias, None, None, None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _gradients(dy: Tensor, kept: _Kept, needs: Sequence[bool]) -> Gradients:
    """The gradients of x, weight and bias that are needed."""
    x, weight, (mean, var, r, d, values, known, _), eps, group = kept
    dw, db = sums_of(dy, x, mean, var, eps)
    need_x, need_weight, need_bias = needs
    dx = None
    if need_x:
        invstd = (var + eps).rsqrt()
        scale = product(weight, r, mean.dtype)
        scale = invstd if scale is None else invstd * scale
        by_mean, by_var = -scale * db * known, -0.5 * invstd * scale * dw * known
        slope, constant = gradient_of_x(values, mean, by_mean, by_var, group)
        dx = mapped(dy, x, mean, scale, slope.to(mean.dtype), constant.to(mean.dtype))
    dweight = None
    if need_weight:
        dweight = dw if r is None or d is None else r * dw + d * db
    return dx, dweight, db if need_bias else None


def sums_of(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Sums (C,) of ``dy * (x - mean) / sigma`` and of ``dy``, over the values of this process."""
    if x.numel() == 0:
        return torch.zeros_like(mean), torch.zeros_like(mean)
    _, dw, db = torch.ops.aten.native_batch_norm_backward(
        dy, x, None, mean, var, None, None, False, eps, [False, True, True]
    )
    return dw, db


def mapped(
    dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, slope: Tensor, constant: Tensor
) -> Tensor:
    """``scale * dy + slope * (x - mean) + constant``, in the dtype of x; all but dy and x (C,)."""
    shape = (-1, *[1] * (x.dim() - 2))
    dx = (x - mean.view(shape)).mul_(slope.view(shape)).add_(constant.view(shape))
    return dx.addcmul_(dy.to(dx.dtype), scale.view(shape)).to(x.dtype)


def _differentiable(dy: Tensor, kept: _Kept, needs: Sequence[bool]) -> Gradients:
    """The same gradients by operations that can be differentiated again."""
    x, weight, (mean, var, r, d, _, _, sums), eps, group = kept
    need_x, need_weight, need_bias = needs
    call = Call(x, None, None, weight, None, 1.0, 0.0, 0.0, eps, group=group, sums=sums)
    renormalizes = r is not None
    if r is None or d is None:
        r, d = torch.ones_like(mean), torch.zeros_like(mean)
    stacked = (mean[None], var[None], r[None], d[None])
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        y = composite.repeated(call, *stacked, renormalizes)
        dx, dweight = composite.gradients(
            y, dy, x if need_x else None, weight if need_weight else None, create_graph
        )
    dims = [0, *range(2, x.dim())]
    return dx, dweight, dy.sum(dims, dtype=mean.dtype) if need_bias else None
