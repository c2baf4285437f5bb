"""Normalization by the statistics of a window of iterations, of which the input's own are a part.

With ``mean = share * mean(x) + borrowed`` and ``nu = share * mean(x^2) + borrowed``, where
``share = 1/k`` in a window of k iterations and the borrowed moments are constants::

    z_hat = (x - mean) / sqrt(nu - mean^2 + eps)
    z     = weight * (z_hat * r + d) + bias

Source: Yao et al. 2020 (arXiv 2002.05712), section 3; r and d as in Ioffe 2017, Algorithm 1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from renorm.kernels import aten, composite
from renorm.kernels.algebra import affine, product
from renorm.kernels.call import accumulation_dtype
from renorm.kernels.cpu import window as native
from renorm.kernels.cpu.window import Given
from renorm.kernels.layout import PLAIN, Sizes, is_last_derivative


class Window(NamedTuple):
    """What x is normalized by: constants (C,) in its accumulation dtype, None where neutral."""

    mean: Tensor
    lost: Tensor | None  # what rounding to that dtype took from the mean
    var: Tensor
    r: Tensor | None
    d: Tensor | None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of x, without gradient; zeros if it has no values.

    Args:
        x: (N, C, *spatial).

    Returns:
        ``(mean, var)``, (C,) each, in the accumulation dtype of x.
    """
    transformed = _is_transformed(x)
    sizes = None if transformed else native.sizes(x)
    if sizes is not None:
        return native.moments(x, sizes)
    if x.numel() == 0 or (x.device.type in ("cpu", "cuda") and not transformed):
        return aten.moments(x)
    x = x.detach().to(accumulation_dtype(x.dtype))
    dims = [0, *range(2, x.dim())]
    centre = x.mean(dims, keepdim=True)  # a large offset must cancel before anything is squared
    var, mean = torch.var_mean(x - centre, dims, correction=0)
    return centre.flatten() + mean, var


def normalize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    share: float | Tensor,
    eps: float,
    r: Tensor | None = None,
    d: Tensor | None = None,
) -> Tensor:
    """``weight * ((x - mean) / sqrt(var + eps) * r + d) + bias``.

    Differentiable in x, weight and bias, any number of times. x counts as itself and in its
    ``share`` of mean and nu; mean, var, r and d carry no gradient.

    Args:
        x: (N, C, *spatial), of any floating dtype, which may be empty.
        mean: (C,), of the window; in float64 nothing of it is lost.
        var: (C,), of the window, biased, not negative.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        share: of the moments of x in those of the window, in [0, 1]: 1 is batch norm, and with 0
            the statistics are constants.
        eps: inside the root.
        r: (C,), or None for 1.
        d: (C,), in units of standard deviations, or None for 0.

    Returns:
        z, in the dtype and memory format of x.
    """
    if _is_transformed(x):
        window = _window(x, mean, var, r, d)
        return _composed(x, weight, bias, window, share, eps).to(x.dtype)
    sizes = native.sizes(x, mean, var, weight, bias, r, d)
    return _Normalize.apply(x, weight, bias, (mean, var, r, d), share, eps, sizes)


def _is_transformed(x: Tensor) -> bool:
    """Whether plain operations alone can serve: something else than autograd looks at them."""
    return (
        torch.compiler.is_compiling()
        or type(x) not in PLAIN
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
    )


def _window(x: Tensor, mean: Tensor, var: Tensor, r: Tensor | None, d: Tensor | None) -> Window:
    dtype = accumulation_dtype(x.dtype)
    rounded, lost = mean.detach().to(dtype), None
    if torch.promote_types(mean.dtype, dtype) is not dtype:
        lost = (mean.detach() - rounded).to(dtype)
    r, d = (None if t is None else t.detach().to(dtype) for t in (r, d))
    return Window(rounded, lost, var.detach().to(dtype), r, d)


class _Normalize(torch.autograd.Function):
    """``normalize``, with a backward of few operations where it is not differentiated again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        given: Given,
        share: float,
        eps: float,
        sizes: Sizes | None,
    ) -> Tensor:
        ctx.settings = share, eps
        ctx.layout = x.stride(), sizes
        ctx.bias_dtype = None if bias is None else bias.dtype
        if sizes is not None:
            z, saved = native.forward(x, sizes, weight, bias, given, eps)
            ctx.save_for_backward(x, weight, saved)
            return z
        window = _window(x, *given)
        ctx.save_for_backward(x, weight, *window)
        return _mapped(x, weight, bias, window, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dz,), (x, weight, *saved) = grads, ctx.saved_tensors
        (share, eps), needs = ctx.settings, ctx.needs_input_grad[:3]
        strides, sizes = ctx.layout
        if not is_last_derivative(dz):
            window = Window(*(saved if sizes is None else saved[0]))
            dx, dweight, dbias = _differentiable(dz, x, weight, window, share, eps, needs)
        elif sizes is None:
            window = Window(*saved)
            dx, dweight, dbias = _gradients(dz, x, weight, window, share, eps, needs)
        else:
            sizes = sizes if x.stride() == strides else None  # a hook may have changed it
            dx, dweight, dbias = native.gradients(dz, x, sizes, weight, saved[0], share, eps, needs)
        if dweight is not None:
            dweight = dweight.to(weight.dtype)
        dbias = None if dbias is None else dbias.to(ctx.bias_dtype)
        return dx, dweight, dbias, None, None, None, None


def _shape(x: Tensor) -> tuple[int, ...]:
    """That of a (C,) tensor against x."""
    return (-1, *[1] * (x.dim() - 2))


def _about_mean(x: Tensor, window: Window) -> Tensor:
    """``x - mean`` in the accumulation dtype, formed before anything is scaled."""
    v = x - window.mean.view(_shape(x))
    return v if window.lost is None else v - window.lost.view(_shape(x))


def _mapped(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, window: Window, eps: float
) -> Tensor:
    shape, dtype = _shape(x), window.mean.dtype
    slope, constant = affine(weight, bias, window.r, window.d, dtype)
    invstd = (window.var + eps).rsqrt()
    z = _about_mean(x, window).mul_((invstd if slope is None else invstd * slope).view(shape))
    return (z if constant is None else z.add_(constant.view(shape))).to(x.dtype)


def _gradients(
    dz: Tensor,
    x: Tensor,
    weight: Tensor | None,
    window: Window,
    share: float | Tensor,
    eps: float,
    needs: Sequence[bool],
) -> Gradients:
    """The gradients of x, weight and bias that are needed, in the dtypes computed in."""
    _, _, var, r, d = window
    need_x, need_weight, need_bias = needs
    shape, dims = _shape(x), [0, *range(2, x.dim())]
    v, invstd = _about_mean(x, window), (var + eps).rsqrt()
    total = dz.sum(dims, dtype=v.dtype)
    product_hat = (v * dz).sum(dims) * invstd  # the sum of dz * z_hat
    dx = dweight = None
    if need_weight:
        dweight = product_hat if r is None else product_hat * r
        dweight = dweight if d is None else dweight + d * total
    if need_x:
        scale = product(weight, r, v.dtype)
        scale = invstd if scale is None else invstd * scale
        part = -share / max(x[:, :1].numel(), 1) * scale
        dx = v.mul_((part * invstd * product_hat).view(shape)).add_((part * total).view(shape))
        dx = dx.addcmul_(dz.to(dx.dtype), scale.view(shape)).to(x.dtype)
    return dx, dweight, total if need_bias else None


def _differentiable(
    dz: Tensor,
    x: Tensor,
    weight: Tensor | None,
    window: Window,
    share: float | Tensor,
    eps: float,
    needs: Sequence[bool],
) -> Gradients:
    """The same gradients by operations that can be differentiated again."""
    need_x, need_weight, need_bias = needs
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        z = _composed(x, weight, None, window, share, eps)
        dx, dweight = composite.gradients(
            z, dz, x if need_x else None, weight if need_weight else None, create_graph
        )
    dims = [0, *range(2, x.dim())]
    return dx, dweight, dz.sum(dims, dtype=z.dtype) if need_bias else None


def _composed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    window: Window,
    share: float | Tensor,
    eps: float,
) -> Tensor:
    """Z in the accumulation dtype, where the own moments of x have values of 0 but derivatives.

    About the mean of the window, the own mean moves its mean, and the own mean square its nu.
    """
    v, var, shape = _about_mean(x, window), window.var.view(_shape(x)), _shape(x)
    if share and x.numel():
        dims = [0, *range(2, x.dim())]
        mean, nu = (share * t.mean(dims).view(shape) for t in (v, v.square()))
        moved = mean - mean.detach()
        v, var = v - moved, var + (nu - nu.detach()) - moved.square()
    slope, constant = affine(weight, bias, window.r, window.d, v.dtype)
    invstd = (var + eps).rsqrt()
    z = v * (invstd if slope is None else invstd * slope.view(shape))
    return z if constant is None else z + constant.view(shape)
