"""Batch renorm on CPU in C: statistics, correction and normalization in one call.

A channel is normalized while it is still in cache, and the threads are those of torch's own pool.
Contiguous and channels-last tensors are taken as they lie, and so are their two- and
three-dimensional likes (``x.t()``, ``x.transpose(1, 2)``); any other is first made contiguous.
"""

import ctypes
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from renorm.kernels import composite, layout, moving
from renorm.kernels.call import Averages, Call, Outcome, accumulation_dtype
from renorm.kernels.layout import Sizes, is_last_derivative

FUSES = True

native: Any = None
_absence = None
try:
    native = importlib.import_module("renorm.kernels.cpu._native")
except ModuleNotFoundError:
    _absence = "was not built: install again with a C compiler (gcc or clang)"
except ImportError as error:
    _absence = f"was built, but does not load: {error}"

# makes statistics for x of each dtype; 0.7 microseconds, torch.empty with a dtype takes 1.2
EMPTY = {
    dtype: torch.empty(0, dtype=accumulation_dtype(dtype), device="cpu").new_empty
    for dtype in layout.DTYPES
}
# mean, what rounding took from it, var, r and d: one allocation
STATISTICS = 5
NOT_GIVEN = (None,) * 4  # mean, var, r and d to normalize by, instead of those of x
_NOT_REMOVED = (None,) * 2  # mean and slope to remove from dy, instead of its own
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
    native.connect(*addresses, *layout.PLAIN, *layout.DTYPES)
    return None


MISSING = _connect()


def obstacle(call: Call) -> str | None:
    """Why this kernel cannot take a call of plain tensors, or None if it can."""
    if call.x.device.type != "cpu":
        return "it computes on the cpu"
    if MISSING is not None:
        return MISSING
    return layout.unreadable(call)


class Step(NamedTuple):
    """What a forward leaves beside y; of statistics moved in place, ``saved`` alone."""

    saved: Tensor  # (5, G, C): the mean, what rounding took from it, var, r and d
    new_mean: Tensor | None
    new_var: Tensor | None
    counted: Tensor | None


class Kept(NamedTuple):
    """What a backward needs to know of its forward."""

    x: Tensor  # as the forward took it
    weight: Tensor | None
    bias: Tensor | None  # for ``relu`` alone: the sign is computed again from x ...
    sign: Tensor | None  # ... or is that of y, where a residual went into it
    mask: Tensor | None
    saved: Tensor
    microbatch: int | None
    relu: bool
    renormalizes: bool  # there were running statistics
    eps: float
    share: float = 1.0  # of the moments of x in ``saved``


def at_once(call: Call) -> Tensor | None:
    """The output of an in-place call of the most common kind; None, and nothing done, if another.

    Whether it is, and valid, is one question to the code in C. Calls of any other kind are
    looked at piece by piece, which takes longer.
    """
    x = call.x
    if not is_common(call) or not _may_be_written(call, accumulation_dtype(x.dtype)):
        return None
    sizes = layout.sizes(x)
    if sizes is None:
        return None
    return _Normalize.apply(x, call.weight, call.bias, None, call, sizes, [])


def is_common(call: Call) -> bool:
    """Whether this is a valid call of the most common kind."""
    return (
        MISSING is None
        and call.mask is None
        and call.residual is None
        and call.microbatch is None
        and native.plain(*call[:9])
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_tracing()
    )


def run(call: Call) -> Outcome:
    """Normalize; all of the call is done in one pass."""
    sizes = layout.sizes(call.x, call.microbatch)
    if sizes is not None and _lies_alike(call, sizes):
        return _run(call, sizes)
    call = _arranged(call)
    sizes = layout.sizes(call.x, call.microbatch)
    assert sizes is not None
    return _run(call, sizes)


def _run(call: Call, sizes: Sizes) -> Outcome:
    if torch.is_grad_enabled():
        steps: list[Step] = []
        x, _, _, weight, bias = call[:5]
        y = _Normalize.apply(x, weight, bias, call.residual, call, sizes, steps)
        (step,) = steps
    else:
        y = torch.empty_like(call.x)
        step = _forward(call, sizes, y)
    # a view takes as long as an allocation; whoever has the statistics moved in place needs none
    mean = None if call.in_place else step.saved[0]
    return Outcome(y, mean, step.new_mean, step.new_var, step.counted)


def computed(call: Call) -> tuple[Tensor, Step]:
    """The output without autograd, and what the backward and the layer need."""
    call = _arranged(call)
    sizes = layout.sizes(call.x, call.microbatch)
    assert sizes is not None
    y = torch.empty_like(call.x)
    return y, _forward(call, sizes, y)


def batch_mean(call: Call) -> Tensor:
    """The (G, C) means that ``run`` would return, bit for bit."""
    call = _arranged(call._replace(in_place=False))
    sizes = layout.sizes(call.x, call.microbatch)
    assert sizes is not None
    return _forward(call, sizes, None).saved[0]


def _lies(t: Tensor | None) -> bool:
    return t is None or (t.is_contiguous() and not t.is_neg())


def _lies_alike(call: Call, sizes: Sizes) -> bool:
    """Whether everything else can be taken as it lies, too."""
    return (
        all(map(_lies, call[1:5]))
        and _lies(call.mask)
        and (call.residual is None or layout.sizes(call.residual, call.microbatch) == sizes)
    )


def _arranged(call: Call) -> Call:
    """The call with tensors that lie as the code in C reads them: copies where they do not."""
    if layout.sizes(call.x, call.microbatch) is None:
        call = call._replace(x=call.x.resolve_neg().contiguous())
    made: dict[str, Any] = {}
    for name in ("running_mean", "running_var", "weight", "bias", "mask"):
        value = getattr(call, name)
        if not _lies(value):
            made[name] = _packed(value)
    residual, x = call.residual, call.x
    if residual is not None and layout.sizes(residual, call.microbatch) != layout.sizes(
        x, call.microbatch
    ):
        made["residual"] = torch.empty_like(x).copy_(residual)
    # a copy of the statistics is not what is to be moved
    in_place = call.in_place and not made.keys() & {"running_mean", "running_var"}
    return call._replace(**made, in_place=in_place)


def _forward(call: Call, sizes: Sizes, y: Tensor | None) -> Step:
    """Write y, and move the running statistics where that is asked for."""
    x, mean, var, weight, bias, _, _, momentum, eps, mask, microbatch, residual, relu, *_ = call
    _, n, c, _ = sizes
    size = n if microbatch is None else min(n, microbatch)
    new_mean = new_var = counter = None
    empty = EMPTY[x.dtype]
    saved = empty((STATISTICS, -(-n // size), c))
    in_place = _may_be_written(call, saved.dtype)
    if in_place:
        new_mean, new_var, counter = mean, var, call.counter
    elif mean is not None:
        new_mean, new_var = empty(c), empty(c)
    counted = native.forward(
        x,
        *sizes,
        size,
        relu,
        mask,
        residual,
        y,
        saved,
        weight,
        bias,
        mean,
        var,
        new_mean,
        new_var,
        counter,
        *call.bounds(),
        momentum,
        eps,
        *NOT_GIVEN,
    )
    if in_place:
        torch._C._increment_version([mean, var, counter])  # type: ignore[list-item]
    if in_place or new_mean is None:
        return Step(saved, None, None, None)
    return Step(saved, new_mean, new_var, _COUNTED if counted else _NOT_COUNTED)


def _may_be_written(call: Call, dtype: torch.dtype) -> bool:
    """Whether the statistics can be moved where they are."""
    mean, var, counter = call.running_mean, call.running_var, call.counter
    return (
        call.in_place
        and mean is not None
        and var is not None
        and type(counter) is Tensor
        and counter.is_cpu
        and mean.dtype is dtype
        and var.dtype is dtype
        and counter.dtype is torch.int64
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
        sizes: Sizes,
        steps: list[Step],
    ) -> Tensor:
        y = torch.empty_like(x)
        # asked before the counter that the limits may depend on is moved
        ctx.removes_own = call.averages is None or call.bounds() == (1, 0)
        step = _forward(call, sizes, y)
        steps.append(step)
        # the sign before a ReLU is computed again from x, or read where a residual went into it
        sign = y if call.relu and residual is not None else None
        bias_of_sign = bias if call.relu and sign is None else None
        ctx.save_for_backward(x, weight, bias_of_sign, sign, call.mask, step.saved)
        ctx.settings = (call.microbatch, call.relu, call.running_mean is not None, call.eps)
        ctx.layout = (x.stride(), sizes)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.averages = call.averages  # moved in place: not to be saved
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, kept, needs = (
            grads[0],
            Kept(*ctx.saved_tensors, *ctx.settings),
            ctx.needs_input_grad[:4],
        )
        strides, sizes = ctx.layout
        sizes = sizes if kept.x.stride() == strides else None  # a hook may have changed it
        if ctx.averages is not None:
            given = (ctx.averages, ctx.removes_own, sizes)
            dx, dweight, dbias, dresidual = _moving(dy, kept, needs, *given)
        elif is_last_derivative(dy):
            dx, dweight, dbias, dresidual = gradients(dy, kept, needs, sizes)
        else:
            dx, dweight, dbias, dresidual = _differentiable(dy, kept, needs)
        weight = kept.weight
        if dweight is not None and weight is not None and dweight.dtype is not weight.dtype:
            dweight = dweight.to(weight.dtype)
        if dbias is not None and dbias.dtype is not ctx.bias_dtype:
            dbias = dbias.to(ctx.bias_dtype)
        return dx, dweight, dbias, dresidual, None, None, None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def gradients(
    dy: Tensor,
    kept: Kept,
    needs: Sequence[bool],
    sizes: Sizes | None = None,
    removed: Tensor | None = None,
) -> Gradients:
    """The gradients of x, weight, bias and residual that are needed, in the dtypes computed in.

    Args:
        dy: of y.
        kept: from the forward.
        needs: of these four, which.
        sizes: of ``kept.x``, if they are known.
        removed: (2, C), the mean and the slope along x_hat that dy loses; None for each group's
            own. With them only dx and dresidual are to be had.
    """
    x, weight, bias, sign, mask, saved, microbatch, relu, renormalizes, eps, share = kept
    need_x, need_weight, need_bias, need_residual = needs
    sizes = sizes or layout.sizes(x, microbatch)
    if sizes is None:
        x = x.resolve_neg().contiguous()
        sizes = layout.sizes(x, microbatch)
        assert sizes is not None
    dy = _like(dy, x)
    masks_residual = need_residual and relu
    dx = torch.empty_like(x) if need_x or masks_residual else None
    dresidual = torch.empty_like(x) if masks_residual else dy if need_residual else None
    c = sizes[2]
    empty = EMPTY[x.dtype]
    dweight = empty(c) if need_weight else None
    dbias = empty(c) if need_bias else None
    native.backward(
        x,
        *sizes,
        sizes[1] if microbatch is None else min(sizes[1], microbatch),
        relu,
        _packed(mask),
        dy,
        None if sign is None else _like(sign, x),
        dx,
        dresidual if masks_residual else None,
        _packed(saved),
        renormalizes,
        _packed(weight),
        _packed(bias),
        dweight,
        dbias,
        eps,
        share,
        *(_NOT_REMOVED if removed is None else removed),
    )
    return dx if need_x else None, dweight, dbias, dresidual


def _moving(
    dy: Tensor,
    kept: Kept,
    needs: Sequence[bool],
    averages: Averages,
    removes_own: bool,
    sizes: Sizes | None,
) -> Gradients:
    """The gradients of ``backward="moving"``; the averages are moved."""
    moving.check_gradient(dy)
    need_x, need_weight, need_bias, need_residual = needs
    dy = _like(dy.clone() if dy._is_zerotensor() else dy, kept.x)
    with_x = (need_x and removes_own, True, True, need_residual and removes_own)
    dx, dweight, dbias, dresidual = gradients(dy, kept, with_x, sizes)
    assert dweight is not None
    assert dbias is not None
    values = dweight.new_tensor(kept.x[:, :1].numel()) if kept.mask is None else kept.mask.sum()
    removed = moving.moved(averages, dweight, dbias, values)
    if not removes_own and (need_x or need_residual):
        dx, _, _, dresidual = gradients(
            dy, kept, (need_x, False, False, need_residual), sizes, removed
        )
    return dx, dweight if need_weight else None, dbias if need_bias else None, dresidual


def _packed(t: Tensor | None) -> Tensor | None:
    return t if t is None or _lies(t) else t.resolve_neg().contiguous()


def _like(t: Tensor, x: Tensor) -> Tensor:
    """t, or a copy of it that lies like x."""
    if t.stride() == x.stride() and not t.is_neg():
        return t
    return torch.empty_like(x).copy_(t)


def _differentiable(dy: Tensor, kept: Kept, needs: Sequence[bool]) -> Gradients:
    """The same gradients by operations that can be differentiated again."""
    x, weight, bias, sign, mask, saved, microbatch, relu, renormalizes, eps, _ = kept
    need_x, need_weight, need_bias, need_residual = needs
    create_graph = torch.is_grad_enabled()
    call = Call(x, None, None, weight, bias, 1.0, 0.0, 0.0, eps, mask, microbatch)
    mean, _, var, r, d = saved
    with torch.enable_grad():
        y = composite.repeated(call, mean, var, r, d, renormalizes)
        if relu:
            dy = torch.where((y if sign is None else sign) <= 0, 0, dy)
        dx, dweight = composite.gradients(
            y, dy, x if need_x else None, weight if need_weight else None, create_graph
        )
    dims = [0, *range(2, x.dim())]
    counted = dy if mask is None else torch.where(mask.unsqueeze(1), dy, 0)
    return (
        dx,
        dweight,
        counted.sum(dims, dtype=saved.dtype) if need_bias else None,
        dy if need_residual else None,
    )
