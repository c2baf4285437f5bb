"""Batch renorm on CUDA in Triton: statistics, correction, normalization and what follows it.

Where a channel fits into one program, the forward is one launch that reads x once, and a second,
tiny one that moves the running statistics; larger tensors are read twice, in parts. With a ramp
for limits and a counter on the device, a step needs no other launch. Triton is imported at the
first call; everything here may be asked without it.
"""

import importlib
import importlib.util
import os
from functools import cache
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from renorm.kernels import aten, layout
from renorm.kernels.call import Call, Outcome, accumulation_dtype
from renorm.kernels.cuda import launch
from renorm.kernels.layout import is_last_derivative
from renorm.limits import Ramp

FUSES = True

_CAPABILITY = (8, 0)  # Triton's own lower bound
_NARROW = 2**30  # numbers that 32 bits count, with room for the masked places of a tile


def _absence() -> str | None:
    """What is missing, as far as it can be told without importing Triton."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


MISSING = _absence()


@cache
def _programs() -> Any:
    """The device code, or why it does not load."""
    try:
        return importlib.import_module("renorm.kernels.cuda.programs")
    except ImportError as error:
        return f"Triton is installed, but does not load: {error}"


def unavailable(device: torch.device) -> str | None:
    """Why this kernel cannot compute on a device, or None if it can."""
    if device.type not in ("cuda", "cpu"):
        return "it computes on cuda devices"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it computes on cuda devices (on the cpu where TRITON_INTERPRET=1, for tests)"
    if MISSING is not None:
        return MISSING
    programs = _programs()
    if isinstance(programs, str):
        return programs
    if device.type == "cpu":
        return None if programs.INTERPRETED else "TRITON_INTERPRET was set after Triton's import"
    return _unfit(device)


@cache
def _unfit(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "its launches are made for NVIDIA's devices"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return f"Triton needs compute capability {_CAPABILITY}, {device} has {capability}"
    return None


def obstacle(call: Call) -> str | None:
    """Why this kernel cannot take a call of plain tensors, or None if it can."""
    return unavailable(call.x.device) or aten.obstacle(call) or layout.unreadable(call)


def run(call: Call) -> Outcome:
    """Normalize the whole batch as one group; no mask, no microbatch."""
    x, _ = _arranged(call.x)
    inputs = (x, call.weight, call.bias, call.residual)
    statistics: list[Any] = []
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        y = _Normalize.apply(*inputs, call, statistics)
    else:
        y = torch.empty_like(x)
        _forward(x, y, call, statistics)
    table, *committed = statistics
    return Outcome(y, table[:1], *committed)


def batch_mean(call: Call) -> Tensor:
    """The (1, C) mean that ``run`` would return, bit for bit."""
    statistics: list[Any] = []
    x, _ = _arranged(call.x.detach())
    _forward(x, None, call._replace(running_mean=None, running_var=None), statistics)
    return statistics[0][:1]


def _sizes(x: Tensor) -> launch.Sizes | None:
    """N, C, S of x where it can be taken as it lies; S == 1 for rows of channels."""
    found = layout.sizes(x)
    if found is None:
        return None
    rows, n, c, s = found
    if c == 1:  # one plane, however it is laid out
        return 1, 1, n * s
    return (n * s, c, 1) if rows else (n, c, s)


def _arranged(x: Tensor) -> tuple[Tensor, launch.Sizes]:
    """x, or a contiguous copy of it, and its sizes."""
    sizes = _sizes(x)
    if sizes is None:
        x = x.resolve_neg().contiguous()
        sizes = _sizes(x)
        assert sizes is not None
    return x, sizes


@cache
def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 0  # an interpreter is fastest with the fewest programs
    return torch.cuda.get_device_properties(device).multi_processor_count


def _like(t: Tensor, x: Tensor) -> Tensor:
    """A tensor with its values where x has its own."""
    return t if _sizes(t) == _sizes(x) else torch.empty_like(x).copy_(t)


def _vector(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().resolve_neg().contiguous()


def _number(value: float | Tensor, x: Tensor) -> tuple[Tensor | None, float | None]:
    """A setting as the programs take it: (tensor, None), or (None, number) as float32."""
    if isinstance(value, Tensor):
        return value.to(x.device), None
    if x.dtype == torch.float64:
        return x.new_full((), value), None
    return None, float(value)


def _limits(call: Call) -> tuple[Any, Any, Tensor | None]:
    """Both limits as the programs take them, and the counter if these are ramps over it."""
    r_max, d_max, counter, x = call.r_max, call.d_max, call.counter, call.x
    if (
        counter is None
        or counter.device != x.device
        or x.dtype == torch.float64  # the numbers of a ramp go along as float32
        or not (isinstance(r_max, Ramp) and isinstance(d_max, Ramp))
    ):
        r_max, d_max = call.bounds()
        return _number(r_max, x), _number(d_max, x), None
    if r_max.low == r_max.high and d_max.low == d_max.high:
        return (None, r_max.high), (None, d_max.high), None
    return (
        (r_max.low, r_max.high, r_max.start, r_max.end),
        (d_max.low, d_max.high, d_max.start, d_max.end),
        counter,
    )


def _cut(
    chosen: launch.Plan, sizes: launch.Sizes, x: Tensor
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The arguments of every program that say how x is cut: sizes, and constants."""
    import triton.language as tl

    n, c, s = sizes
    bn, bc, bs = chosen.tile
    v = gcd(s, 16)  # values that one load may take
    constants = {
        "BN": bn,
        "BC": bc,
        "BS": bs,
        "V": v,
        "INDEX": tl.int32 if x.numel() <= _NARROW else tl.int64,
        "ACC": _accumulator(x.dtype),
        "num_warps": chosen.warps,
    }
    return (n, c, s // v), constants


def _accumulator(dtype: torch.dtype) -> Any:
    """Triton's name of ``accumulation_dtype``."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _forward(x: Tensor, y: Tensor | None, call: Call, statistics: list[Any]) -> None:
    """Compute a step; ``statistics`` becomes the table, new mean, new var, counted."""
    programs, sizes = _programs(), _sizes(x)
    assert sizes is not None
    chosen = launch.plan(sizes, _processors(x.device))
    lengths, constants = _cut(chosen, sizes, x)
    c, acc = x.shape[1], accumulation_dtype(x.dtype)
    table = torch.empty((programs.ROWS, c), dtype=acc, device=x.device)
    parameters = (call.running_mean, call.running_var, call.weight, call.bias)
    r_max, d_max, counter = _limits(call)
    settings = (
        table, *map(_vector, parameters), r_max, d_max, _number(call.momentum, x), counter, *lengths
    )  # fmt: skip
    options = {**constants, "EPS": call.eps, "RELU": call.relu}
    residual = None if y is None or call.residual is None else _like(call.residual, x)
    with torch.cuda.device_of(x):
        if chosen.parts == 0:
            programs.whole_forward[(chosen.blocks,)](x, y, residual, *settings, **options)
        else:
            part = (chosen.n_part, chosen.s_part)
            partial = table.new_empty((chosen.parts, 3, c))
            grid = (chosen.blocks, chosen.parts)
            programs.measure[grid](x, partial, *lengths, *part, **constants)
            if y is None:
                grid = (chosen.blocks, 1)
            programs.normalize[grid](
                x, y, residual, partial, *settings, *part, chosen.parts,
                BP=launch.power(chosen.parts), **options,
            )  # fmt: skip
        statistics += [table, *_committed(table, call)]


def _committed(table: Tensor, call: Call) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The new statistics and whether the batch was counted; None if written in place."""
    mean, var = call.running_mean, call.running_var
    if mean is None or var is None:
        return None, None, None
    programs, c = _programs(), table.shape[1]
    block = min(launch.power(c), launch.SETTINGS.commit)
    sizes = {"BC": block, "ACC": _accumulator(table.dtype), "num_warps": max(1, block // 32)}
    if call.in_place and _writable(table, call):
        programs.commit[(1,)](table, mean, var, mean, var, call.counter, None, c, **sizes)
        written = (mean, var, call.counter)
        increment_version([t for t in written if t is not None and not t.is_inference()])
        return None, None, None
    new_mean, new_var = table.new_empty((2, c)).unbind()
    counted = torch.empty((), dtype=torch.bool, device=table.device)
    old = _vector(mean), _vector(var)
    programs.commit[(1,)](table, *old, new_mean, new_var, None, counted, c, **sizes)
    return new_mean, new_var, counted


def _writable(table: Tensor, call: Call) -> bool:
    """Whether the running statistics and the counter can be written as they lie."""
    counter = call.counter
    if counter is None or counter.dtype != torch.int64 or counter.device != table.device:
        return False
    return all(
        t is not None and t.dtype == table.dtype and t.is_contiguous() and not t.is_neg()
        for t in (call.running_mean, call.running_var)
    )


class _Normalize(torch.autograd.Function):
    """``relu(gamma * ((x - mu_B) / sigma_B * r + d) + beta + residual)``; r and d are constant.

    What is kept is x, a table per channel, and y only where a residual hides the ReLU's sign.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: Call,
        statistics: list[Any],
    ) -> Tensor:
        y = torch.empty_like(x)
        _forward(x, y, call, statistics)
        signs = y if call.relu and residual is not None else None
        ctx.save_for_backward(x, weight, statistics[0], signs)
        ctx.eps, ctx.relu = call.eps, call.relu
        ctx.renormalizes = call.running_mean is not None
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, table, y = ctx.saved_tensors
        dy, needs = grads[0], ctx.needs_input_grad[:4]
        if is_last_derivative(dy):
            return *_backward(ctx, x, dy, weight, table, y), None, None
        mean, _, invstd, r, d, scale, shift = table[:7].unbind()
        if ctx.relu:
            dy = dy.masked_fill(_below_zero(x, y, mean, scale, shift), 0)
        if not ctx.renormalizes:
            r, d = None, None
        dx, dweight, dbias = aten.gradients(dy, x, weight, mean, invstd, r, d, ctx.eps, needs[:3])
        dbias = dbias.to(ctx.bias_dtype) if dbias is not None else None
        return dx, dweight, dbias, (dy if needs[3] else None), None, None


def _below_zero(x: Tensor, y: Tensor | None, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Where the ReLU let nothing through."""
    if y is None:
        shape = (-1, *[1] * (x.dim() - 2))
        y = (x.detach() - mean.view(shape)) * scale.view(shape) + shift.view(shape)
    return y.detach() <= 0


def _backward(
    ctx: Any, x: Tensor, dy: Tensor, weight: Tensor | None, table: Tensor, y: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight, bias and residual, those that are needed."""
    programs, needs = _programs(), ctx.needs_input_grad
    x, sizes = _arranged(x)  # a hook on saved tensors may return another layout
    given, dy = dy, _like(dy, x)
    y = None if y is None else _like(y, x)
    c = x.shape[1]
    dx = torch.empty_like(x) if needs[0] else None
    dweight = torch.empty_like(weight.detach()) if weight is not None and needs[1] else None
    dbias = table.new_empty(c, dtype=ctx.bias_dtype) if needs[2] else None
    masked = torch.empty_like(x) if needs[3] and ctx.relu else None
    chosen = launch.plan(sizes, _processors(x.device))
    lengths, constants = _cut(chosen, sizes, x)
    options, results = {**constants, "RELU": ctx.relu}, (table, dweight, dbias, *lengths)
    with torch.cuda.device_of(x):
        if chosen.parts == 0:
            programs.whole_backward[(chosen.blocks,)](dy, x, y, dx, masked, *results, **options)
        else:
            part, grid = (chosen.n_part, chosen.s_part), (chosen.blocks, chosen.parts)
            partial = table.new_empty((chosen.parts, 2, c))
            programs.measure_gradient[grid](dy, x, y, partial, table, *lengths, *part, **options)
            if dx is None and masked is None:
                grid = (chosen.blocks, 1)
            programs.propagate[grid](
                dy, x, y, dx, masked, partial, *results, *part, chosen.parts,
                BP=launch.power(chosen.parts), **options,
            )  # fmt: skip
    return dx, dweight, dbias, (masked if ctx.relu else given) if needs[3] else None
