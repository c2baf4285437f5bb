"""Correct first: no layer of ours is timed before it agrees with the float64 reference."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from renorm import reference
from renorm.bench.providers import Provider
from renorm.bench.registry import Shape
from renorm.limits import fixed

LIMITS = (1.5, 0.5)  # so narrow that some channels are clipped and others are not
_SMALL = {
    2: ((32, 16), (7, 5), (256, 65)),
    4: ((4, 8, 7, 7), (3, 33, 13, 11), (2, 4, 65, 63)),
    5: ((2, 4, 3, 5, 5), (1, 16, 8, 8, 9)),
}
# about 30 roundings of float32 arithmetic, then one to the dtype in which results are stored
_ARITHMETIC = 2e-6
_STORAGE = {"float32": 0.0, "bfloat16": 2.0**-8}


def refusal(provider: Provider, shape: Shape) -> str | None:
    """Why a provider must not be timed on inputs like ``shape``, or None if it is correct.

    Output, all gradients and the new statistics of small inputs of its dtype and layout are held
    against the reference; so is the output in eval mode.
    """
    for sizes in _SMALL[len(shape.sizes)]:
        small = replace(shape, sizes=sizes)
        try:
            found = _wrong(provider, small)
        except Exception as error:  # a compiler of kernels raises what it likes
            found = f"{type(error).__name__}: {error}"
        if found:
            return f"{provider.name} on {small.name} {small.dtype} {small.layout}: {found}"
    return None


def _wrong(provider: Provider, shape: Shape) -> str | None:
    layer = provider.build(shape, fixed(*LIMITS))
    x, dy = shape.tensor(0).requires_grad_(), shape.tensor(1)
    norm, state = _filled(layer, x)
    expected = _expected(state, x, dy, norm, shape.relu)
    exact_eval = _in_eval(state, x, norm, shape.relu)
    layer.eval()
    with torch.no_grad():
        eval_y = layer(x)
    y = layer.train()(x)
    y.backward(dy)
    actual = {
        "the output in eval mode": (eval_y, exact_eval, float(np.abs(exact_eval).max())),
        "the output": (y, *expected["y"]),
        "dx": (x.grad, *expected["dx"]),
        "dweight": (norm.weight.grad, *expected["dweight"]),
        "dbias": (norm.bias.grad, *expected["dbias"]),
        "running_mean": (norm.running_mean, *expected["running_mean"]),
        "running_var": (norm.running_var, *expected["running_var"]),
    }
    for name, (value, exact, scale) in actual.items():
        stored = _STORAGE[shape.dtype] if value.dtype == x.dtype else 0.0
        allowed = scale * (_ARITHMETIC * expected["offset"] + stored)
        error = float(np.abs(_double(value) - exact).max())
        if not error <= allowed:  # NaN is wrong, too
            return f"{name} is off by {error:.3g}, allowed are {allowed:.3g}"
    return None


def _filled(layer: nn.Module, x: Tensor) -> tuple[Any, dict[str, np.ndarray]]:
    """The normalization in the layer, with statistics near those of x, and its state."""
    norm: Any = next(m for m in layer.modules() if hasattr(m, "running_mean"))
    channels = x.shape[1]
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(4, channels, generator=generator)
    rows = torch.from_numpy(reference.as_rows(_double(x)))
    values = {
        "running_mean": rows.mean(0) + 0.6 * noise[0],
        "running_var": rows.var(0) * (0.8 * noise[1]).exp(),
        "weight": 1 + 0.5 * noise[2],
        "bias": noise[3],
    }
    with torch.no_grad():
        for name, value in values.items():
            getattr(norm, name).copy_(value)
    return norm, {name: _double(getattr(norm, name)) for name in values}


def _expected(
    state: dict[str, np.ndarray], x: Tensor, dy: Tensor, norm: Any, relu: bool
) -> dict[str, Any]:
    """Exact values, each with the size of the terms that it is the sum of."""
    rows, gradient = (reference.as_rows(_double(t)) for t in (x, dy))
    gamma, eps = state["weight"], norm.eps
    step = reference.batch_renorm(
        rows,
        state["running_mean"],
        np.sqrt(state["running_var"] + eps),
        gamma,
        state["bias"],
        r_max=LIMITS[0],
        d_max=LIMITS[1],
        alpha=norm.momentum,
        eps=eps,
    )
    y = step.y
    if relu:
        gradient = np.where(y > 0, gradient, 0)
        y = np.maximum(y, 0)
    dx, dweight, dbias = reference.batch_renorm_backward(gradient, rows, gamma, step.r, step.d, eps)
    if getattr(norm, "backward", "batch") == "moving":  # of a first pass: averages of this batch
        nothing = reference.GradientAverages(np.zeros_like(gamma), np.zeros_like(gamma), 0)
        moving = reference.batch_renorm_moving_backward(
            [gradient], [rows], gamma, [step.r], [step.d], nothing, rate=1.0, eps=eps
        )
        dx = moving.dx[0]
    sigma = np.sqrt(rows.var(axis=0) + eps)
    x_hat = (rows - rows.mean(axis=0)) / sigma * step.r + step.d
    sizes = {
        "y": float(np.abs(step.y).max()),
        "dx": float((np.abs(gradient).max(axis=0) * np.abs(gamma) * step.r / sigma).max()),
        "dweight": float(np.abs(gradient * x_hat).sum(axis=0).max()),
        "dbias": float(np.abs(gradient).sum(axis=0).max()),
    }
    shape = tuple(x.shape)
    return {
        "y": (reference.as_maps(y, shape), sizes["y"]),
        "dx": (reference.as_maps(dx, shape), sizes["dx"]),
        "dweight": (dweight, sizes["dweight"]),
        "dbias": (dbias, sizes["dbias"]),
        "running_mean": (step.mu, float(np.abs(step.mu).max())),
        "running_var": (step.sigma**2 - eps, float((step.sigma**2).max())),
        # how much rounding grows where a mean is subtracted
        "offset": max(1.0, float((np.abs(rows).max(axis=0) / sigma).max())),
    }


def _in_eval(state: dict[str, np.ndarray], x: Tensor, norm: Any, relu: bool) -> np.ndarray:
    y = reference.inference(
        reference.as_rows(_double(x)),
        state["running_mean"],
        state["running_var"],
        state["weight"],
        state["bias"],
        norm.eps,
    )
    return reference.as_maps(np.maximum(y, 0) if relu else y, tuple(x.shape))


def _double(t: Tensor) -> np.ndarray:
    return t.detach().to("cpu", torch.float64).numpy()
