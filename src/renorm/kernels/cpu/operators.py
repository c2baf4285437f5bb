"""The kernel in C as operators of torch: what a compiler puts into its graph.

A compiler knows their outputs' shapes and strides and leaves the rest alone, so compiled code has
the statistics and the cost of eager code. Eager calls do not come here: torch's dispatcher would
take longer than the kernel does on small tensors.
"""

from typing import Any

import torch
from torch import Tensor, library

from renorm.errors import RenormError
from renorm.kernels import cpu, layout
from renorm.kernels.call import Call, Outcome, accumulation_dtype

_LIBRARY = library.Library("renorm", "FRAGMENT")
_LIBRARY.define(
    "forward(Tensor x, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias, "
    "Tensor? residual, Tensor? mask, Tensor r_max, Tensor d_max, Tensor momentum, float eps, "
    "SymInt? microbatch, bool relu) "
    "-> (Tensor y, Tensor saved, Tensor new_mean, Tensor new_var, Tensor counted)"
)
_LIBRARY.define(
    "backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? sign, Tensor? mask, "
    "Tensor saved, SymInt? microbatch, bool relu, bool renormalizes, float eps) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)"
)


def run(call: Call) -> Outcome:
    """Normalize by the operator: statistics are always returned, never moved in place."""
    r_max, d_max = call.bounds()
    settings = (_tensor(value) for value in (r_max, d_max, call.momentum))
    y, saved, new_mean, new_var, counted = torch.ops.renorm.forward(
        call.x,
        call.running_mean,
        call.running_var,
        call.weight,
        call.bias,
        call.residual,
        call.mask,
        *settings,
        call.eps,
        call.microbatch,
        call.relu,
    )
    if call.running_mean is None:
        return Outcome(y, saved[0], None, None, None)
    return Outcome(y, saved[0], new_mean, new_var, counted)


def _tensor(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=torch.float64)


@library.impl(_LIBRARY, "forward", "CPU")
def _forward(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    r_max: Tensor,
    d_max: Tensor,
    momentum: Tensor,
    eps: float,
    microbatch: int | None,
    relu: bool,
) -> tuple[Tensor, ...]:
    settings = (float(r_max), float(d_max), float(momentum))
    affine, more = (weight, bias), (mask, microbatch, residual, relu)
    call = Call(x, running_mean, running_var, *affine, *settings, eps, *more)
    y, (saved, new_mean, new_var, counted) = cpu.computed(call)
    if new_mean is None or new_var is None or counted is None:
        nothing = saved.new_empty(0)
        return y, saved, nothing, nothing.clone(), torch.tensor(False)
    return y, saved, new_mean, new_var, counted.clone()  # the two it may be are constants


@library.register_fake("renorm::forward", lib=_LIBRARY)
def _fake_forward(
    x: Tensor, running_mean: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, c, microbatch = x.shape[0], x.shape[1], rest[-2]
    groups = 1 if microbatch is None else (n - 1) // microbatch + 1
    dtype, moved = accumulation_dtype(x.dtype), c if running_mean is not None else 0
    return (
        _like_output(x, microbatch),
        x.new_empty((cpu.STATISTICS, groups, c), dtype=dtype),
        x.new_empty(moved, dtype=dtype),
        x.new_empty(moved, dtype=dtype),
        x.new_empty((), dtype=torch.bool),
    )


def _like_output(x: Tensor, microbatch: int | None) -> Tensor:
    """Empty, as the output of x lies."""
    lies = layout.sizes(x, microbatch) is not None
    return (
        torch.empty_like(x) if lies else torch.empty_like(x, memory_format=torch.contiguous_format)
    )


@library.impl(_LIBRARY, "backward", "CPU")
def _backward(dy: Tensor, *kept: Any) -> tuple[Tensor, ...]:
    forward = cpu.Kept(*kept)
    needs = (True, True, True, forward.sign is not None)
    dx, dweight, dbias, dresidual = cpu.gradients(dy, forward, needs)
    assert dx is not None
    assert dweight is not None
    assert dbias is not None
    return dx, dweight, dbias, forward.saved.new_empty(0) if dresidual is None else dresidual


@library.register_fake("renorm::backward", lib=_LIBRARY)
def _fake_backward(
    dy: Tensor, x: Tensor, weight: Any, bias: Any, sign: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    saved, microbatch = rest[1], rest[2]
    c = x.shape[1]
    dx = _like_output(x, microbatch)
    dresidual = saved.new_empty(0) if sign is None else torch.empty_like(dx)
    return dx, saved.new_empty(c), saved.new_empty(c), dresidual


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, running_mean, _, weight, bias, residual, mask, *_, eps, microbatch, relu = inputs
    sign = output[0] if relu and residual is not None else None
    ctx.save_for_backward(x, weight, bias, sign, mask, output[1])
    ctx.settings = (microbatch, relu, running_mean is not None, eps)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, dy: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, sign, mask, saved = ctx.saved_tensors
    dx, dweight, dbias, dresidual = torch.ops.renorm.backward(
        dy, x, weight, bias, sign, mask, saved, *ctx.settings
    )
    return (
        dx,
        None,
        None,
        None if weight is None else dweight.to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
        (dy if sign is None else dresidual) if ctx.needs_input_grad[5] else None,
        *[None] * 7,
    )


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RenormError(
        "A compiled batch renorm layer was differentiated twice, and its operator has a first "
        "derivative alone. Run this part without torch.compile, or with kernel='composite'."
    )


library.register_autograd("renorm::forward", _differentiate, setup_context=_keep, lib=_LIBRARY)
library.register_autograd("renorm::backward", _refuse, lib=_LIBRARY)
