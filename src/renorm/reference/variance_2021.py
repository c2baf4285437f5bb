"""Variance norm, as Lubana et al. 2021 (arXiv 2106.05956) compare it, and its derivatives.

x (m, C) values, var_B (C,) the biased variance of the batch, gamma and beta (C,), L the loss, and
d_... its derivative.
"""

import numpy as np

from renorm.reference.shapes import Array


def variance_norm(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array]:
    """``y = gamma * x / sqrt(var_B + eps) + beta``.

    Returns:
        ``(y, var_B)``.
    """
    var_B = ((x - x.mean(axis=0)) ** 2).mean(axis=0)
    return gamma * x / np.sqrt(var_B + eps) + beta, var_B


def variance_norm_backward(
    dy: Array, x: Array, gamma: Array, eps: float
) -> tuple[Array, Array, Array]:
    """The derivatives.

    Returns:
        ``(dx, dgamma, dbeta)``.
    """
    m, centred = len(x), x - x.mean(axis=0)
    sigma_B = np.sqrt((centred**2).mean(axis=0) + eps)

    dx_hat = gamma * dy
    dvar_B = (dx_hat * x).sum(axis=0) * (-1 / 2) * sigma_B**-3
    dx = dx_hat / sigma_B + dvar_B * 2 * centred / m
    return dx, (dy * x / sigma_B).sum(axis=0), dy.sum(axis=0)
