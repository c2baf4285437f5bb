"""Batch Renormalization: Ioffe 2017 (arXiv 1702.03275), Algorithm 1 and its derivatives.

Symbols of the paper: x (m, C) values, mu_B and sigma_B (C,) of the batch, mu and sigma (C,) the
moving averages, alpha the update rate, gamma and beta (C,), L the loss, and d_... its derivative.
Standard deviations contain eps: ``sigma = sqrt(var + eps)``.
"""

from typing import NamedTuple

import numpy as np

from renorm.reference.shapes import Array


class Renormalized(NamedTuple):
    """The output of a step, the corrections it used, and the moving averages after it."""

    y: Array  # (m, C)
    r: Array  # (C,)
    d: Array  # (C,)
    mu: Array  # (C,)
    sigma: Array  # (C,)


def batch_renorm(
    x: Array,
    mu: Array,
    sigma: Array,
    gamma: Array,
    beta: Array,
    *,
    r_max: float,
    d_max: float,
    alpha: float,
    eps: float,
) -> Renormalized:
    """Algorithm 1, one training step."""
    mu_B = x.mean(axis=0)
    sigma_B = np.sqrt(eps + ((x - mu_B) ** 2).mean(axis=0))
    r = np.clip(sigma_B / sigma, 1 / r_max, r_max)
    d = np.clip((mu_B - mu) / sigma, -d_max, d_max)
    x_hat = (x - mu_B) / sigma_B * r + d
    y = gamma * x_hat + beta
    return Renormalized(y, r, d, mu + alpha * (mu_B - mu), sigma + alpha * (sigma_B - sigma))


def batch_renorm_backward(
    dy: Array, x: Array, gamma: Array, r: Array, d: Array, eps: float
) -> tuple[Array, Array, Array]:
    """The derivatives of section 3, with r and d held constant, in the paper's order.

    Returns:
        ``(dx, dgamma, dbeta)``.
    """
    m = len(x)
    mu_B = x.mean(axis=0)
    sigma_B = np.sqrt(eps + ((x - mu_B) ** 2).mean(axis=0))
    x_hat = (x - mu_B) / sigma_B * r + d

    dx_hat = dy * gamma
    dsigma_B = (dx_hat * (x - mu_B) * (-r / sigma_B**2)).sum(axis=0)
    dmu_B = (dx_hat * (-r / sigma_B)).sum(axis=0)
    dx = dx_hat * r / sigma_B + dsigma_B * (x - mu_B) / (m * sigma_B) + dmu_B / m
    dgamma = (dy * x_hat).sum(axis=0)
    dbeta = dy.sum(axis=0)
    return dx, dgamma, dbeta
