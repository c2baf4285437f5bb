"""Cross-Iteration Batch Normalization: Yao et al. 2020 (arXiv 2002.05712), section 3.

Symbols of the paper: t the iteration and tau the lag, theta the weights of the layer before the
norm, mu and nu (C,) the means of its output and of the square of it, k the iterations in the
window, gamma and beta (C,), L the loss, and d_... its derivative or that of mu and nu. Here y
(m, C) is the output of that layer, ``y = p W^T + b`` of patches p (``patches``), so theta is
(W, b), and z (m, C) is the output of the norm. eps is inside the root, variances are biased.

Three ways to have mu and nu of an earlier iteration at the weights of now:

- ``first_order``: the paper's Taylor polynomial in the weights of the layer itself;
- ``exact``: with p held, mu is linear in theta and nu quadratic, so two moments of p suffice;
- ``recomputed``: a second forward of the stored input, which judges the other two.

None sees that earlier layers have changed too, which changes p.

The authors' code (github.com/Howal/Cross-iterationBatchNorm) differs: it drops an iteration from
the average of a channel where its variance is negative, adds eps to the root, and in the burn-in
divides by the unbiased deviation. As there, the window starts empty after the burn-in, and the
running averages follow the current batch; what else they can follow is an option.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from renorm.reference.patches import linear, linear_backward
from renorm.reference.shapes import Array

Moments = tuple[Array, Array]  # mu and nu, or mu and variance in cross_iteration_centred


class Iteration(NamedTuple):
    """What an iteration leaves behind: statistics, their derivatives, and where they hold."""

    patches: Array  # (G, m, K), for exact and recomputed
    weight: Array  # (C, K)
    bias: Array  # (C,), zeros if the layer has none
    mu: Array  # (C,)
    nu: Array  # (C,)
    dmu: Array  # (G, K), by W; by b it is 1
    dnu: Array  # (C, K), by W; by b it is 2 mu


Compensation = Callable[[Iteration, Array, Array | None], Moments]
Averaging = Callable[[Array, Sequence[Moments]], Moments]


def observe(patches: Array, weight: Array, bias: Array | None = None) -> Iteration:
    """Statistics of an iteration and their derivatives by the layer's own weights.

    ``mu_c = mean(y_c)`` and ``nu_c = mean(y_c^2)`` depend on filter c alone, with
    ``dmu_c/dW_c = mean(p)``, which is the same for all channels of a group, and
    ``dnu_c/dW_c = 2 mean(y_c p)``, the weight gradient of the layer at dy = 2 y / m.
    """
    y = linear(patches, weight, bias)
    _, dnu, _ = linear_backward(2 * y / len(y), patches, weight)
    b = np.zeros(len(weight)) if bias is None else bias
    return Iteration(
        patches, weight, b, y.mean(axis=0), (y**2).mean(axis=0), patches.mean(axis=1), dnu
    )


def first_order(
    past: Iteration, weight: Array, bias: Array | None = None, rho: float = 1.0
) -> Moments:
    """The compensation of the paper, for mu and likewise for nu.

    ``mu_{t-tau}(theta_t) = mu_{t-tau}(theta_{t-tau}) + rho dmu/dtheta (theta_t - theta_{t-tau})``

    Exact for mu. For nu it is too small by ``mean((p dW + db)^2)``, so nu may come out below mu^2.

    Args:
        past: iteration t - tau.
        weight, bias: theta_t.
        rho: 1 in the paper; 0 is its "naive" variant, the statistics as they were.
    """
    dW, db = weight - past.weight, (0.0 if bias is None else bias) - past.bias
    mu = past.mu + rho * (linear(past.dmu[:, None], dW)[0] + db)
    nu = past.nu + rho * ((past.dnu * dW).sum(axis=1) + 2 * past.mu * db)
    return mu, nu


def exact(past: Iteration, weight: Array, bias: Array | None = None) -> Moments:
    """The whole of the dependence on theta, from ``E[p]`` and ``E[p p^T]`` alone.

    ``mu_c = W_c E[p] + b_c`` and ``nu_c = W_c E[p p^T] W_c^T + 2 b_c W_c E[p] + b_c^2``.
    """
    b = np.zeros(len(weight)) if bias is None else bias
    second = past.patches.swapaxes(1, 2) @ past.patches / past.patches.shape[1]
    without_bias = linear(past.dmu[:, None], weight)[0]
    return without_bias + b, quadratic(second, weight) + 2 * b * without_bias + b**2


def quadratic(moment: Array, weight: Array) -> Array:
    """``W_c M W_c^T`` for each channel c, with the M (G, K, K) of its group."""
    filters = weight.reshape(len(moment), -1, moment.shape[1])
    return ((filters @ moment) * filters).sum(axis=2).reshape(-1)


def recomputed(past: Iteration, weight: Array, bias: Array | None = None) -> Moments:
    """A second forward: the statistics of the stored input at theta_t."""
    y = linear(past.patches, weight, bias)
    return y.mean(axis=0), (y**2).mean(axis=0)


def window_statistics(y: Array, borrowed: Sequence[Moments]) -> Moments:
    """The average of the current iteration and of those before, each with the same weight.

    ``mu_bar = 1/k sum mu``, ``nu_bar = 1/k sum max(nu, mu^2)``, ``var_bar = nu_bar - mu_bar^2``,
    with k = 1 + the number of borrowed ones. The max is taken per channel and per iteration after
    compensation and before the average, so no iteration has a negative variance; it cannot act
    on the current one, whose nu is at least mu^2.

    Returns:
        ``(mu_bar, var_bar)``.
    """
    mu = np.stack([y.mean(axis=0), *(mu for mu, _ in borrowed)])
    nu = np.stack([(y**2).mean(axis=0), *(nu for _, nu in borrowed)])
    mu_bar = mu.mean(axis=0)
    return mu_bar, np.maximum(nu, mu**2).mean(axis=0) - mu_bar**2


def cross_iteration_norm(
    y: Array, mu_bar: Array, var_bar: Array, gamma: Array, beta: Array, eps: float
) -> Array:
    """``z = gamma * (y - mu_bar) / sqrt(var_bar + eps) + beta``."""
    return gamma * (y - mu_bar) / np.sqrt(var_bar + eps) + beta


def cross_iteration_norm_backward(
    dz: Array, y: Array, mu_bar: Array, var_bar: Array, k: int, gamma: Array, eps: float
) -> tuple[Array, Array, Array]:
    """The derivatives of the loss, through the current iteration only.

    Differentiated is y, as itself and in its own mu and nu, which are 1/k of mu_bar and nu_bar.
    Constant are the borrowed moments after compensation and max: theirs would be derivatives by
    y and W of earlier iterations, and by the theta_t in theta_t - theta_{t-tau}. So with
    ``z_hat = (y - mu_bar) / sqrt(var_bar + eps)`` batch norm's two projections are weakened by k::

        dy = (dz_hat - mean(dz_hat) / k - z_hat mean(dz_hat z_hat) / k) / sqrt(var_bar + eps)

    ``linear_backward`` takes dy on to the patches, W and b of the current iteration. For k > 1 the
    gradient by b is not zero, as it is in batch norm, and the loss depends on the scale of W.

    Returns:
        ``(dy, dgamma, dbeta)``.
    """
    sigma = np.sqrt(var_bar + eps)
    z_hat = (y - mu_bar) / sigma
    dz_hat = dz * gamma
    dvar_bar = (dz_hat * (y - mu_bar)).sum(axis=0) * (-1 / 2) * sigma**-3
    dnu_bar = dvar_bar
    dmu_bar = (dz_hat * (-1 / sigma)).sum(axis=0) - 2 * mu_bar * dvar_bar
    dy = dz_hat / sigma + (dnu_bar * 2 * y + dmu_bar) / (k * len(y))
    return dy, (dz * z_hat).sum(axis=0), dz.sum(axis=0)


class CrossIterationState(NamedTuple):
    """What a norm carries from iteration to iteration."""

    past: tuple[Iteration, ...]  # the latest first
    mean: Array  # (C,) running averages, for inference
    var: Array  # (C,)
    iterations: int = 0


class CrossIterationStep(NamedTuple):
    """The output of an iteration, and what its backward needs."""

    z: Array  # (m, C)
    y: Array  # (m, C)
    mu_bar: Array  # (C,)
    var_bar: Array  # (C,)
    k: int


def cross_iteration_step(
    patches: Array,
    weight: Array,
    bias: Array | None,
    gamma: Array,
    beta: Array,
    state: CrossIterationState,
    *,
    window: int,
    burn_in: int,
    momentum: float,
    eps: float,
    compensate: Compensation = first_order,
    average: Averaging = window_statistics,
    follow: Literal["batch", "window"] = "batch",
) -> tuple[CrossIterationStep, CrossIterationState]:
    """One iteration of training: compensate, average, normalize, remember.

    Args:
        window: k at most, the current iteration included. It fills by one an iteration.
        burn_in: so many first iterations are plain batch norm, and nothing of them is remembered.
        compensate, average: in mu and nu here; ``cross_iteration_centred`` has both in mu and var.
        follow: whose statistics the running averages move to by ``momentum``, the variance times
            n/(n-1) for n values as in nn.BatchNorm: the current batch's, or the window's. One value
            has no variance: the averages stay.
    """
    now = observe(patches, weight, bias)
    y = linear(patches, weight, bias)
    borrowed = [compensate(it, weight, bias) for it in state.past]
    mu_bar, var_bar = average(y, borrowed)
    z = cross_iteration_norm(y, mu_bar, var_bar, gamma, beta, eps)

    mu, var, n = *average(y, []), len(y)
    if follow == "window":
        mu, var, n = mu_bar, var_bar, n + sum(it.patches.shape[1] for it in state.past)
    rate = momentum if n > 1 else 0.0
    after = CrossIterationState(
        (now, *state.past)[: window - 1] if state.iterations >= burn_in else (),
        state.mean + rate * (mu - state.mean),
        state.var + rate * (var * n / max(n - 1, 1) - state.var),
        state.iterations + 1,
    )
    return CrossIterationStep(z, y, mu_bar, var_bar, 1 + len(borrowed)), after
