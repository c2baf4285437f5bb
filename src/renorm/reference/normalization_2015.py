"""Batch Normalization: Ioffe & Szegedy 2015 (arXiv 1502.03167), Algorithms 1 and 2.

Symbols of the paper: x (m, C) values, mu_B and var_B (C,) batch statistics with the biased
variance, gamma and beta (C,), L the loss, and d_... its derivative.
"""

import numpy as np

from renorm.reference.shapes import Array


def batch_norm(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """Algorithm 1: ``y = gamma * (x - mu_B) / sqrt(var_B + eps) + beta``.

    Returns:
        ``(y, mu_B, var_B)``.
    """
    mu_B = x.mean(axis=0)
    var_B = ((x - mu_B) ** 2).mean(axis=0)
    x_hat = (x - mu_B) / np.sqrt(var_B + eps)
    return gamma * x_hat + beta, mu_B, var_B


def batch_norm_backward(
    dy: Array, x: Array, gamma: Array, eps: float
) -> tuple[Array, Array, Array]:
    """The derivatives of section 3, in the paper's order.

    Returns:
        ``(dx, dgamma, dbeta)``.
    """
    m = len(x)
    mu_B = x.mean(axis=0)
    var_B = ((x - mu_B) ** 2).mean(axis=0)
    x_hat = (x - mu_B) / np.sqrt(var_B + eps)

    dx_hat = dy * gamma
    dvar_B = (dx_hat * (x - mu_B)).sum(axis=0) * (-1 / 2) * (var_B + eps) ** (-3 / 2)
    dmu_B = (dx_hat * (-1 / np.sqrt(var_B + eps))).sum(axis=0) + dvar_B * (-2 * (x - mu_B)).mean(
        axis=0
    )
    dx = dx_hat / np.sqrt(var_B + eps) + dvar_B * 2 * (x - mu_B) / m + dmu_B / m
    dgamma = (dy * x_hat).sum(axis=0)
    dbeta = dy.sum(axis=0)
    return dx, dgamma, dbeta


def population(batches: list[Array]) -> tuple[Array, Array]:
    """Algorithm 2, steps 8 to 10: ``E[x] = E_B[mu_B]``, ``Var[x] = m/(m-1) * E_B[var_B]``.

    Batches may differ in size: each variance is corrected by its own m before averaging.

    Returns:
        ``(E[x], Var[x])``.
    """
    means = [batch.mean(axis=0) for batch in batches]
    variances = [batch.var(axis=0) * len(batch) / (len(batch) - 1) for batch in batches]
    return np.mean(means, axis=0), np.mean(variances, axis=0)


def inference(x: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """Algorithm 2, step 11: ``gamma * (x - E[x]) / sqrt(Var[x] + eps) + beta``, as one line."""
    scale = gamma / np.sqrt(var + eps)
    return scale * x + (beta - scale * mean)
