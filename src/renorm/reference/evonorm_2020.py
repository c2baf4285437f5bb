"""EvoNorm-B0 and EvoNorm-S0: Liu et al. 2020 (arXiv 2004.02967), and their derivatives.

x (N, C, P) with P positions; v, gamma and beta (C,); s_... a standard deviation, which contains
eps and is of the biased variance: s_B (C,) of the batch, s_I (N, C) of an instance, s_G of a group
of channels; L the loss, and d_... its derivative.
"""

import numpy as np

from renorm.reference.shapes import Array


def _deviation(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    """``sqrt(var + eps)`` over the axes, which stay."""
    mu = x.mean(axis=axes, keepdims=True)
    return np.sqrt(((x - mu) ** 2).mean(axis=axes, keepdims=True) + eps)


def _deviation_backward(ds: Array, x: Array, axes: tuple[int, ...], s: Array) -> Array:
    """What reaches x through ``s``: ``ds * (x - mu) / (m * s)``, m values in each mean."""
    m = x.size / s.size
    return ds * (x - x.mean(axis=axes, keepdims=True)) / (m * s)


def evonorm_b0(x: Array, v: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """``y = gamma * x / max(s_B, v * x + s_I) + beta``."""
    s_B, s_I = _deviation(x, (0, 2), eps), _deviation(x, (2,), eps)
    x_hat = x / np.maximum(s_B, v[:, None] * x + s_I)
    return gamma[:, None] * x_hat + beta[:, None]


def evonorm_b0_inference(
    x: Array, var: Array, v: Array, gamma: Array, beta: Array, eps: float
) -> Array:
    """The same with a given variance (C,) in place of the batch's."""
    s_I = _deviation(x, (2,), eps)
    x_hat = x / np.maximum(np.sqrt(var + eps)[:, None], v[:, None] * x + s_I)
    return gamma[:, None] * x_hat + beta[:, None]


def evonorm_b0_backward(
    dy: Array, x: Array, v: Array, gamma: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    """The derivatives, where the two sides of the maximum differ.

    Returns:
        ``(dx, dv, dgamma, dbeta)``.
    """
    s_B, s_I = _deviation(x, (0, 2), eps), _deviation(x, (2,), eps)
    line = v[:, None] * x + s_I
    d = np.maximum(s_B, line)

    dx_hat = gamma[:, None] * dy
    dd = -dx_hat * x / d**2
    dline = np.where(line > s_B, dd, 0)
    ds_B = np.where(line > s_B, 0, dd).sum(axis=(0, 2), keepdims=True)
    ds_I = dline.sum(axis=2, keepdims=True)
    dx = (
        dx_hat / d
        + v[:, None] * dline
        + _deviation_backward(ds_B, x, (0, 2), s_B)
        + _deviation_backward(ds_I, x, (2,), s_I)
    )
    return dx, (dline * x).sum(axis=(0, 2)), (dy * x / d).sum(axis=(0, 2)), dy.sum(axis=(0, 2))


def evonorm_s0(x: Array, v: Array, gamma: Array, beta: Array, groups: int, eps: float) -> Array:
    """``y = gamma * x * sigmoid(v * x) / s_G + beta``."""
    s_G = _group_deviation(x, groups, eps)
    gate = 1 / (1 + np.exp(-v[:, None] * x))
    return gamma[:, None] * (x * gate / s_G) + beta[:, None]


def evonorm_s0_backward(
    dy: Array, x: Array, v: Array, gamma: Array, groups: int, eps: float
) -> tuple[Array, Array, Array, Array]:
    """The derivatives.

    Returns:
        ``(dx, dv, dgamma, dbeta)``.
    """
    N, C, P = x.shape
    grouped = x.reshape(N, groups, -1)
    s_G = _group_deviation(x, groups, eps)
    gate = 1 / (1 + np.exp(-v[:, None] * x))
    h = x * gate

    dh = gamma[:, None] * dy / s_G
    ds_G = (-dh * h / s_G).reshape(N, groups, -1).sum(axis=2, keepdims=True)
    through = _deviation_backward(ds_G, grouped, (2,), _deviation(grouped, (2,), eps))
    dgate = gate * (1 - gate)
    dx = dh * (gate + v[:, None] * x * dgate) + through.reshape(N, C, P)
    dv = (dh * x**2 * dgate).sum(axis=(0, 2))
    return dx, dv, (dy * h / s_G).sum(axis=(0, 2)), dy.sum(axis=(0, 2))


def _group_deviation(x: Array, groups: int, eps: float) -> Array:
    """s_G for each channel, (N, C, 1)."""
    N, C, _ = x.shape
    s = _deviation(x.reshape(N, groups, -1), (2,), eps)
    return np.repeat(s, C // groups, axis=1)
