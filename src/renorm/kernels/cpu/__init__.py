"""Batch renorm on CPU in C: statistics, correction and normalization in one call.

A channel is normalized while it is still in cache, and the threads are those of torch's own pool.
Contiguous and channels-last tensors are taken as they lie, and so are their two- and
three-dimensional likes (``x.t()``, ``x.transpose(1, 2)``); any other is first made contiguous.
"""

import ctypes
import importlib
from typing import Any

import torch
from torch import Tensor

from renorm.kernels.aten import gradients
from renorm.kernels.call import Call, Outcome, accumulation_dtype

FUSES = False

native: Any = None
_absence = None
try:
    native = importlib.import_module("renorm.kernels.cpu._native")
except ModuleNotFoundError:
    _absence = "was not built: install again with a C compiler (gcc or clang)"
except ImportError as error:
    _absence = f"was built, but does not load: {error}"

# (N, C, S) as the values lie in memory; S == 1 for rows of channels
Sizes = tuple[int, int, int]

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# makes statistics for x of each dtype; 0.7 microseconds, torch.empty with a dtype takes 1.2
_EMPTY = {
    dtype: torch.empty(0, dtype=accumulation_dtype(dtype), device="cpu").new_empty
    for dtype in _DTYPES
}
_PLAIN = (Tensor, torch.nn.Parameter, type(None))
_COUNTED = torch.tensor(True, device="cpu")
_NOT_COUNTED = torch.tensor(False, device="cpu")


def _connect() -> str | None:
    """Give the extension torch's pool; returns what is missing."""
    if native is None:
        return f"the C extension {_absence}"
    try:
        library = ctypes.CDLL(torch._C.__file__)  # it depends on libtorch_cpu, which has them
        addresses = [
            ctypes.cast(getattr(library, name), ctypes.c_void_p).value
            for name in ("torch_parallel_for", "torch_get_num_threads")
        ]
    except (OSError, AttributeError):
        return f"torch {torch.__version__} does not export torch_parallel_for"
    native.connect(*addresses)
    return None


MISSING = _connect()


def obstacle(call: Call) -> str | None:
    """Why this kernel cannot take a call that the native operations can, or None if it can."""
    if call.x.device.type != "cpu":
        return "it computes on the cpu"
    if MISSING is not None:
        return MISSING
    if call.x.dtype not in _DTYPES:
        return f"it has no code for {call.x.dtype}"
    for t in (call.weight, call.bias, call.running_mean, call.running_var):
        if type(t) not in _PLAIN or (t is not None and t.dtype not in _DTYPES):
            return "a parameter or statistic is not a plain floating-point tensor"
    if torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        return "operations are being recorded, and this would not be one"
    return None


def run(call: Call) -> Outcome:
    """Normalize the whole batch as one group; no mask, no microbatch."""
    x, weight, bias = call.x, call.weight, call.bias
    x, sizes = _arranged(x)
    statistics: list[Any] = []
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    ):
        y = _Normalize.apply(x, weight, bias, call, sizes, statistics)
    else:
        y = torch.empty_like(x)
        _forward(x, y, call, sizes, statistics)
    mean, _, new_mean, new_var, counted = statistics
    return Outcome(y, mean, new_mean, new_var, None if new_mean is None else counted)


def batch_mean(call: Call) -> Tensor:
    """The (1, C) mean that ``run`` would return, bit for bit."""
    x, sizes = _arranged(call.x.detach())
    statistics: list[Any] = []
    _forward(x, None, call, sizes, statistics)
    return statistics[0]


def _arranged(x: Tensor) -> tuple[Tensor, Sizes]:
    """x, or a contiguous copy of it, and its sizes."""
    sizes = _sizes(x)
    if sizes is not None:
        return x, sizes
    x = x.resolve_neg().contiguous()
    sizes = _sizes(x)
    assert sizes is not None
    return x, sizes


def _sizes(x: Tensor) -> Sizes | None:
    """The sizes of x if it can be taken as it lies."""
    if x.is_neg():
        return None
    n, c, rank = x.shape[0], x.shape[1], x.dim()
    if x.is_contiguous():
        s = x.numel() // (n * c)
        return (n, c, s) if c > 1 else (1, 1, n * s)
    if rank == 2:
        return (1, c, n) if x.t().is_contiguous() else None
    if x.stride(1) != 1:
        return None
    if rank == 3:
        rows = x.transpose(1, 2).is_contiguous()
    elif rank == 4:
        rows = x.is_contiguous(memory_format=torch.channels_last)
    else:
        rows = rank == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
    return (x.numel() // c, c, 1) if rows else None


def _vector(t: Tensor | None, alive: list[Tensor]) -> tuple[int, int]:
    """Address and dtype of a (C,) tensor; what is copied to have one is kept in ``alive``."""
    if t is None:
        return 0, 0
    if t.is_neg() or not t.is_contiguous():
        t = t.detach().resolve_neg().contiguous()
        alive.append(t)
    return t.data_ptr(), _DTYPES[t.dtype]


def _forward(x: Tensor, y: Tensor | None, call: Call, sizes: Sizes, statistics: list[Any]) -> None:
    """Compute a step; ``statistics`` becomes mean, saved, new mean, new var, counted.

    ``saved`` (4, C) is 1 / sigma_B, r, d, and what rounding took from the mean.
    """
    c = x.shape[1]
    empty = _EMPTY[x.dtype]
    mean, saved = empty((1, c)), empty((4, c))
    new_mean = new_var = None
    if call.running_mean is not None:
        new_mean, new_var = empty(c), empty(c)
    alive: list[Tensor] = []
    r_max, d_max = call.bounds()
    counted = native.forward(
        _DTYPES[x.dtype],
        *sizes,
        x.data_ptr(),
        0 if y is None else y.data_ptr(),
        mean.data_ptr(),
        saved.data_ptr(),
        0 if new_mean is None else new_mean.data_ptr(),
        0 if new_var is None else new_var.data_ptr(),
        *_vector(call.weight, alive),
        *_vector(call.bias, alive),
        *_vector(call.running_mean, alive),
        *_vector(call.running_var, alive),
        r_max,
        d_max,
        call.momentum,
        call.eps,
    )
    statistics += [mean, saved, new_mean, new_var, _COUNTED if counted else _NOT_COUNTED]


class _Normalize(torch.autograd.Function):
    """``gamma * ((x - mu_B) / sigma_B * r + d) + beta``; r and d do not depend on x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        call: Call,
        sizes: Sizes,
        statistics: list[Any],
    ) -> Tensor:
        y = torch.empty_like(x)
        _forward(x, y, call, sizes, statistics)
        mean, saved = statistics[:2]
        ctx.save_for_backward(x, weight, mean, saved)
        ctx.eps = call.eps
        ctx.renormalizes = call.running_mean is not None
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, saved = ctx.saved_tensors
        dy, needs = grads[0], ctx.needs_input_grad[:3]
        if _is_last_derivative(dy):
            dx = torch.empty_like(x) if needs[0] else None
            dweight, dbias = _backward(x, dy, dx, weight, mean, saved)
        else:
            invstd, r, d, _ = saved if ctx.renormalizes else (saved[0], None, None, None)
            dx, dweight, dbias = gradients(dy, x, weight, mean[0], invstd, r, d, ctx.eps, needs)
        return (
            dx,
            dweight.to(weight.dtype) if needs[1] and dweight is not None else None,
            dbias.to(ctx.bias_dtype) if needs[2] and dbias is not None else None,
            None,
            None,
            None,
        )


def _is_last_derivative(dy: Tensor) -> bool:
    """Whether plain numbers are asked for: nothing will differentiate or batch this backward."""
    return (
        not torch.is_grad_enabled()
        and type(dy) is Tensor
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._has_storage(dy)  # a batch of gradients has none
        and not dy._is_zerotensor()
    )


def _backward(
    x: Tensor, dy: Tensor, dx: Tensor | None, weight: Tensor | None, mean: Tensor, saved: Tensor
) -> tuple[Tensor, Tensor]:
    """Writes dx; returns the gradients (C,) of weight and bias."""
    x, sizes = _arranged(x)  # a hook on saved tensors may return another layout
    if _sizes(dy) != sizes:
        dy = torch.empty_like(x).copy_(dy)
    c = x.shape[1]
    dweight, dbias = mean.new_empty(c), mean.new_empty(c)
    alive: list[Tensor] = []
    native.backward(
        _DTYPES[x.dtype],
        *sizes,
        x.data_ptr(),
        dy.data_ptr(),
        0 if dx is None else dx.data_ptr(),
        mean.data_ptr(),
        saved.data_ptr(),
        *_vector(weight, alive),
        dweight.data_ptr(),
        dbias.data_ptr(),
    )
    return dweight, dbias
