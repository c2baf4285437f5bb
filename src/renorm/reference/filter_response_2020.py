"""Filter response normalization: Singh & Krishnan 2020 (arXiv 1911.09737), and its derivatives.

Symbols of the paper: x (N, C, P) with P positions, nu2 (N, C, 1) the mean square over positions,
gamma, beta and tau (C,), eps all that is added to nu2, L the loss, and d_... its derivative. The
derivative of eps is that by the sum; where eps contains ``|eps_l|`` it is to be multiplied by the
sign of eps_l.
"""

import numpy as np

from renorm.reference.shapes import Array


def filter_response_norm(
    x: Array, gamma: Array, beta: Array, tau: Array, eps: float
) -> tuple[Array, Array]:
    """``y = gamma * x / sqrt(nu2 + eps) + beta`` and ``z = max(y, tau)``, the TLU.

    Returns:
        ``(z, y)``.
    """
    nu2 = (x**2).mean(axis=2, keepdims=True)
    x_hat = x / np.sqrt(nu2 + eps)
    y = gamma[:, None] * x_hat + beta[:, None]
    return np.maximum(y, tau[:, None]), y


def filter_response_norm_backward(
    dz: Array, x: Array, gamma: Array, beta: Array, tau: Array, eps: float
) -> tuple[Array, Array, Array, Array, float]:
    """The derivatives, where no y equals its tau.

    Returns:
        ``(dx, dgamma, dbeta, dtau, deps)``.
    """
    nu2 = (x**2).mean(axis=2, keepdims=True)
    nu = np.sqrt(nu2 + eps)
    x_hat = x / nu
    passes = gamma[:, None] * x_hat + beta[:, None] > tau[:, None]

    dy = np.where(passes, dz, 0)
    dtau = np.where(passes, 0, dz).sum(axis=(0, 2))
    dgamma = (dy * x_hat).sum(axis=(0, 2))
    dbeta = dy.sum(axis=(0, 2))
    dx_hat = gamma[:, None] * dy
    dnu2 = (dx_hat * x).sum(axis=2, keepdims=True) * (-1 / 2) * nu**-3
    dx = dx_hat / nu + dnu2 * 2 * x / x.shape[2]
    return dx, dgamma, dbeta, dtau, float(dnu2.sum())
