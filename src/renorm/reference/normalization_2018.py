"""l_p and noisy batch norm: Santurkar et al. 2018 (arXiv 1805.11604), and their derivatives.

x (m, C) values, mu_B (C,) their mean, u either x - mu_B or x itself, M (C,) its moment: mean(|u|)
for p = 1, mean(u^2) for p = 2, max(|u|) for p = inf; gamma and beta (C,), L the loss, and d_... its
derivative.
"""

from typing import NamedTuple

import numpy as np

from renorm.reference.normalization_2015 import batch_norm, batch_norm_backward
from renorm.reference.shapes import Array


class LpNormalized(NamedTuple):
    """The output and the statistics of a batch."""

    y: Array  # (m, C)
    mu: Array  # (C,)
    M: Array  # (C,)


def _moment(u: Array, p: float) -> Array:
    return np.abs(u).max(axis=0) if p == np.inf else (np.abs(u) ** p).mean(axis=0)


def _scale(M: Array, p: float, eps: float) -> Array:
    return np.sqrt(M + eps) if p == 2 else M + eps


def lp_batch_norm(
    x: Array, gamma: Array, beta: Array, p: float, eps: float, *, centred: bool = True
) -> LpNormalized:
    """``y = gamma * (x - mu_B) / scale + beta``; scale is sqrt(M + eps) for p = 2, else M + eps."""
    mu_B = x.mean(axis=0)
    M = _moment(x - mu_B if centred else x, p)
    return LpNormalized(gamma * (x - mu_B) / _scale(M, p, eps) + beta, mu_B, M)


def lp_batch_norm_backward(
    dy: Array, x: Array, gamma: Array, p: float, eps: float, *, centred: bool = True
) -> tuple[Array, Array, Array]:
    """The derivatives; values that tie for the maximum share its derivative.

    Returns:
        ``(dx, dgamma, dbeta)``.
    """
    m, c = len(x), x - x.mean(axis=0)
    u = c if centred else x
    M = _moment(u, p)
    scale = _scale(M, p, eps)

    dx_hat = gamma * dy
    dscale = (-dx_hat * c / scale**2).sum(axis=0)
    if p == 1:
        du = dscale * np.sign(u) / m
    elif p == 2:
        du = dscale / (2 * scale) * 2 * u / m
    else:
        largest = np.abs(u) == M
        du = dscale * np.sign(u) * largest / largest.sum(axis=0)
    dc = dx_hat / scale + (du if centred else 0)
    dx = dc - dc.mean(axis=0) + (0 if centred else du)
    return dx, (dy * c / scale).sum(axis=0), dy.sum(axis=0)


def noisy_batch_norm(
    x: Array, gamma: Array, beta: Array, s: Array, m: Array, eps: float
) -> tuple[Array, Array, Array]:
    """Batch norm, then the noise ``s * y + m`` with the given draws (m, C).

    Returns:
        ``(y, mu_B, var_B)``.
    """
    y, mu_B, var_B = batch_norm(x, gamma, beta, eps)
    return s * y + m, mu_B, var_B


def noisy_batch_norm_backward(
    dy: Array, x: Array, gamma: Array, s: Array, eps: float
) -> tuple[Array, Array, Array]:
    """The derivatives, with the noise held constant.

    Returns:
        ``(dx, dgamma, dbeta)``.
    """
    return batch_norm_backward(s * dy, x, gamma, eps)
