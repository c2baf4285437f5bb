"""Batch renorm on CPU in C: statistics, correction and normalization in one call.

A channel is normalized while it is still in cache, and the threads are those of torch's own pool.
Contiguous and channels-last tensors are taken as they lie, and so are their two- and
three-dimensional likes (``x.t()``, ``x.transpose(1, 2)``); any other is first made contiguous.
"""

import ctypes
import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from renorm.kernels.call import Call, Outcome, accumulation_dtype
from renorm.kernels.composite import repeated

FUSES = True

native: Any = None
_absence = None
try:
    native = importlib.import_module("renorm.kernels.cpu._native")
except ModuleNotFoundError:
    _absence = "was not built: install again with a C compiler (gcc or clang)"
except ImportError as error:
    _absence = f"was built, but does not load: {error}"

# whether rows of channels lie together, and N, C, S
Sizes = tuple[bool, int, int, int]

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# makes statistics for x of each dtype; 0.7 microseconds, torch.empty with a dtype takes 1.2
_EMPTY = {
    dtype: torch.empty(0, dtype=accumulation_dtype(dtype), device="cpu").new_empty
    for dtype in _DTYPES
}
_PLAIN = (Tensor, torch.nn.Parameter)
# mean, what rounding took from it, var, r and d: one allocation
_STATISTICS = 5
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
    """Why this kernel cannot take a call of plain tensors, or None if it can."""
    if call.x.device.type != "cpu":
        return "it computes on the cpu"
    if MISSING is not None:
        return MISSING
    if call.x.dtype not in _DTYPES:
        return f"it has no code for {call.x.dtype}"
    for t in (call.weight, call.bias, call.running_mean, call.running_var):
        if t is not None and (type(t) not in _PLAIN or t.dtype not in _DTYPES):
            return "a parameter or statistic is not a plain floating-point tensor"
    for t in (call.mask, call.residual):
        if t is not None and type(t) not in _PLAIN:
            return f"the mask or residual is a tensor subclass ({type(t).__name__})"
    if torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        return "operations are being recorded, and this would not be one"
    return None


def run(call: Call) -> Outcome:
    """Normalize; all of the call is done in one pass."""
    statistics: list[Any] = []
    if torch.is_grad_enabled():
        y = _Normalize.apply(call.x, call.weight, call.bias, call.residual, call, statistics)
    else:
        lying = _as_it_lies(call)
        y = torch.empty_like(lying.x)
        _forward(lying, y, call, statistics)
    saved, new_mean, new_var, counted = statistics
    return Outcome(y, saved[0], new_mean, new_var, counted)


def batch_mean(call: Call) -> Tensor:
    """The (G, C) means that ``run`` would return, bit for bit."""
    statistics: list[Any] = []
    _forward(_as_it_lies(call), None, call._replace(in_place=False), statistics)
    return statistics[0][0]


class _Lying(NamedTuple):
    """The tensors of one call, or copies of them, that all lie alike."""

    x: Tensor
    sizes: Sizes
    mask: Tensor | None
    residual: Tensor | None


def _as_it_lies(call: Call) -> _Lying:
    x, mask, residual = call.x, call.mask, call.residual
    sizes = _sizes(x, call.microbatch)
    if sizes is None:
        x = x.resolve_neg().contiguous()
        sizes = _sizes(x, call.microbatch)
        assert sizes is not None
    if mask is not None:
        mask = mask.contiguous()
    if residual is not None and _sizes(residual, call.microbatch) != sizes:
        residual = torch.empty_like(x).copy_(residual)
    return _Lying(x, sizes, mask, residual)


def _sizes(x: Tensor, microbatch: int | None = None) -> Sizes | None:
    """The sizes of x if it can be taken as it lies."""
    if x.is_neg():
        return None
    shape = x.shape
    n, c, rank = shape[0], shape[1], len(shape)
    if x.is_contiguous():
        return False, n, c, x.numel() // (n * c)
    if rank == 2:  # one plane of n values, which groups of examples would cut
        return (False, 1, c, n) if microbatch is None and x.t().is_contiguous() else None
    if x.stride(1) != 1:
        return None
    if rank == 3:
        rows = x.transpose(1, 2).is_contiguous()
    elif rank == 4:
        rows = x.is_contiguous(memory_format=torch.channels_last)
    else:
        rows = rank == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
    return (True, n, c, x.numel() // (n * c)) if rows else None


def _vector(t: Tensor | None, alive: list[Tensor]) -> tuple[int, int]:
    """Address and dtype of a (C,) tensor; what is copied to have one is kept in ``alive``."""
    if t is None:
        return 0, 0
    if t.is_neg() or not t.is_contiguous():
        t = t.detach().resolve_neg().contiguous()
        alive.append(t)
    return t.data_ptr(), _DTYPES[t.dtype]


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _forward(lying: _Lying, y: Tensor | None, call: Call, statistics: list[Any]) -> None:
    """Write y; ``statistics`` becomes saved, new mean, new var, counted.

    ``saved`` (5, G, C) is the mean, what rounding took from it, var, r and d.
    """
    x, sizes, mask, residual = lying
    n, c = sizes[1], sizes[2]
    size = n if call.microbatch is None else call.microbatch
    empty = _EMPTY[x.dtype]
    saved = empty((_STATISTICS, -(-n // size), c))
    mean, var, counter = call.running_mean, call.running_var, call.counter
    new_mean, new_var = mean, var
    if not _may_be_written(call, saved.dtype):
        counter = None
        if mean is not None:
            new_mean, new_var = empty(c), empty(c)
    alive: list[Tensor] = []
    counted = native.forward(
        _DTYPES[x.dtype],
        *sizes,
        size,
        call.relu,
        x.data_ptr(),
        _address(mask),
        _address(residual),
        _address(y),
        saved.data_ptr(),
        *_vector(call.weight, alive),
        *_vector(call.bias, alive),
        *_vector(mean, alive),
        *_vector(var, alive),
        _address(new_mean),
        _address(new_var),
        _address(counter),
        *call.bounds(),
        call.momentum,
        call.eps,
    )
    if mean is None or var is None or counter is not None:
        statistics += [saved, None, None, None]
    else:
        statistics += [saved, new_mean, new_var, _COUNTED if counted else _NOT_COUNTED]
    if mean is not None and var is not None and counter is not None:
        torch._C._increment_version([mean, var, counter])


def _may_be_written(call: Call, dtype: torch.dtype) -> bool:
    """Whether the statistics can be moved where they are."""
    mean, var, counter = call.running_mean, call.running_var, call.counter
    return (
        call.in_place
        and mean is not None
        and var is not None
        and type(counter) is Tensor
        and mean.dtype == dtype == var.dtype
        and counter.dtype == torch.int64
        and mean.is_contiguous()
        and var.is_contiguous()
        and not mean.is_inference()
    )


class _Normalize(torch.autograd.Function):
    """``gamma * ((x - mu_B) / sigma_B * r + d) + beta``; r and d do not depend on x."""

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
        lying = _as_it_lies(call)
        y = torch.empty_like(lying.x)
        _forward(lying, y, call, statistics)
        # the sign before a ReLU is computed again from x, or read where a residual went into it
        sign = y if call.relu and residual is not None else None
        bias_of_sign = bias if call.relu and sign is None else None
        ctx.save_for_backward(lying.x, weight, bias_of_sign, sign, lying.mask, statistics[0])
        ctx.settings = (call.microbatch, call.relu, call.running_mean is not None, call.eps)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        if _is_last_derivative(dy):
            return *_backward(ctx, dy), None, None
        return *_differentiable(ctx, dy), None, None


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


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias and residual."""
    x, weight, bias, sign, mask, saved = ctx.saved_tensors
    microbatch, relu, renormalizes, eps = ctx.settings
    need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
    sizes = _sizes(x, microbatch)
    if sizes is None:  # a hook on saved tensors may return another layout
        x = x.contiguous()
        sizes = _sizes(x, microbatch)
        assert sizes is not None
    if _sizes(dy, microbatch) != sizes:
        dy = torch.empty_like(x).copy_(dy)
    if sign is not None and _sizes(sign, microbatch) != sizes:
        sign = torch.empty_like(x).copy_(sign)
    masks_residual = need_residual and relu
    dx = torch.empty_like(x) if need_x or masks_residual else None
    dresidual = torch.empty_like(x) if masks_residual else dy if need_residual else None
    c = sizes[2]
    empty = _EMPTY[x.dtype]
    dweight = empty(c) if need_weight else None
    dbias = empty(c) if need_bias else None
    alive: list[Tensor] = []
    native.backward(
        _DTYPES[x.dtype],
        *sizes,
        sizes[1] if microbatch is None else microbatch,
        relu,
        x.data_ptr(),
        _address(mask),
        dy.data_ptr(),
        _address(sign),
        _address(dx),
        _address(dresidual) if masks_residual else 0,
        saved.data_ptr(),
        renormalizes,
        *_vector(weight, alive),
        *_vector(bias, alive),
        _address(dweight),
        _address(dbias),
        eps,
    )
    if dweight is not None and dweight.dtype != weight.dtype:
        dweight = dweight.to(weight.dtype)
    if dbias is not None and dbias.dtype != ctx.bias_dtype:
        dbias = dbias.to(ctx.bias_dtype)
    return dx if need_x else None, dweight, dbias, dresidual


def _differentiable(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients by operations that can be differentiated again."""
    x, weight, bias, sign, mask, saved = ctx.saved_tensors
    microbatch, relu, _, eps = ctx.settings
    need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
    create_graph = torch.is_grad_enabled()
    call = Call(x, None, None, weight, bias, 1.0, 0.0, 0.0, eps, mask, microbatch)
    mean, _, var, r, d = saved
    with torch.enable_grad():
        y = repeated(call, mean, var, r, d)
        if relu:
            dy = dy * ((y if sign is None else sign) > 0)
        wanted = [t for t, need in ((x, need_x), (weight, need_weight)) if need]
        found = iter(
            torch.autograd.grad(y, wanted, dy.to(y.dtype), create_graph=create_graph)
            if wanted
            else ()
        )
    dims = [0, *range(2, x.dim())]
    counted = dy if mask is None else torch.where(mask.unsqueeze(1), dy, 0)
    return (
        next(found) if need_x else None,
        next(found) if need_weight else None,
        counted.sum(dims, dtype=saved.dtype).to(ctx.bias_dtype) if need_bias else None,
        dy if need_residual else None,
    )
