"""Cross-Iteration Batch Normalization in mean and variance, where nu - mu^2 would cancel.

The statistics of ``cross_iteration_2020`` with ``var = nu - mu^2`` kept as the mean of squares
about the mean, never as that difference. Algebraically ``centred_first_order`` with
``expand="nu"``, ``centred_exact`` and ``centred_window`` are the paper's; in float64 they hold at
any mean. max(nu, mu^2) is max(var, 0).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from renorm.reference.cross_iteration_2020 import Iteration, Moments, quadratic
from renorm.reference.patches import linear, linear_backward
from renorm.reference.shapes import Array


def centred_variance(past: Iteration) -> tuple[Array, Array]:
    """The variance of each channel, and its derivative by W; by b it is 0.

    ``var_c = mean((W_c (p - E[p]))^2)``, ``dvar_c/dW_c = 2 mean((y_c - mu_c) (p - E[p]))``.

    As var is a quadratic form in W, ``dvar_c/dW_c W_c = 2 var_c``: compensation to first order
    needs no copy of the weights of then, ``var + dvar (W_t - W) = dvar W_t - var``.

    Returns:
        ``(var, dvar)``, (C,) and (C, K).
    """
    about_mean = past.patches - past.dmu[:, None]
    y = linear(about_mean, past.weight)
    _, dvar, _ = linear_backward(2 * y / len(y), about_mean, past.weight)
    return (y**2).mean(axis=0), dvar


def centred_first_order(
    past: Iteration,
    weight: Array,
    bias: Array | None = None,
    rho: float = 1.0,
    expand: Literal["nu", "var", "sigma"] = "nu",
) -> Moments:
    """Compensation to first order in the weights of the layer, as mean and variance.

    The mean is exact at rho = 1. What the paper expands for the second statistic is nu; the same
    derivative allows less error, with S the covariance of p, at rho = 1::

        expand    variance at theta_t                too small by
        "nu"      var + dvar dW - (E[p] dW + db)^2    dW S dW + (E[p] dW + db)^2
        "var"     var + dvar dW                      dW S dW
        "sigma"   (sigma + dvar dW / (2 sigma))^2    dW S dW - (dvar dW)^2 / (4 var), at least 0

    "sigma" is never negative, and exact where W was scaled.

    Returns:
        ``(mu, var)``; the variance may be negative, for ``centred_window`` to take as 0.
    """
    dW, db = weight - past.weight, (0.0 if bias is None else bias) - past.bias
    shift = rho * (linear(past.dmu[:, None], dW)[0] + db)
    var, dvar = centred_variance(past)
    change = rho * (dvar * dW).sum(axis=1)
    if expand == "nu":
        change = change - shift**2
    elif expand == "sigma":
        change = change + np.divide(change**2, 4 * var, out=np.zeros_like(var), where=var > 0)
    return past.mu + shift, var + change


def centred_exact(past: Iteration, weight: Array, bias: Array | None = None) -> Moments:
    """``exact`` from the covariance S of p: ``mu_c = W_c E[p] + b_c``, ``var_c = W_c S W_c^T``."""
    about_mean = past.patches - past.dmu[:, None]
    covariance = about_mean.swapaxes(1, 2) @ about_mean / past.patches.shape[1]
    return linear(past.dmu[:, None], weight, bias)[0], quadratic(covariance, weight)


def centred_recomputed(past: Iteration, weight: Array, bias: Array | None = None) -> Moments:
    """``recomputed``: a second forward of the stored input at theta_t."""
    y = linear(past.patches, weight, bias)
    return y.mean(axis=0), y.var(axis=0)


def centred_window(y: Array, borrowed: Sequence[Moments]) -> Moments:
    """``window_statistics`` of (mu, var): ``var_bar = mean(max(var, 0)) + mean((mu - mu_bar)^2)``.

    Returns:
        ``(mu_bar, var_bar)``.
    """
    mu = np.stack([y.mean(axis=0), *(mu for mu, _ in borrowed)])
    var = np.stack([y.var(axis=0), *(var for _, var in borrowed)])
    return mu.mean(axis=0), np.maximum(var, 0).mean(axis=0) + mu.var(axis=0)
