"""Statistics of earlier iterations at the weights of now, and their average over a window.

L lags, the iterations that are remembered. Weights come as W (G, C / G, K), one row a filter; what
a lag left is described in ``nn.history``, which keeps it. Source: Yao et al. 2020 (arXiv
2002.05712), section 3, in centred moments: nu - mu^2 would cancel.
"""

import torch
from torch import Tensor


def means(W: Tensor, bias: Tensor | None, mean_patch: Tensor, offset: Tensor) -> Tensor:
    """``W E[p] + b`` of L iterations, (C, L): exact, since a mean is linear in the weights.

    Args:
        W: (G, C / G, K), of now.
        bias: (C,), of now.
        mean_patch: E[p] of each iteration, (G, L, K).
        offset: what the mean had beside ``W E[p] + b`` then, (C, L).
    """
    if len(W) == 1:
        mean = torch.addmm(offset, W[0], mean_patch[0].t())
    else:
        mean = (W @ mean_patch.transpose(1, 2)).reshape(offset.shape).add_(offset)
    return mean if bias is None else mean.add_(bias.unsqueeze(1))


def expanded(covariance_now: Tensor, rest: Tensor, inverse_var: Tensor) -> Tensor:
    """The variance (C, L) by first order in the weights, sigma being what is expanded.

    ``(sigma + dsigma (W - W_then))^2 = (cov + rest)^2 / var`` with cov the mean of the products of
    the outputs then and now about their means, as ``dvar W = 2 cov`` and ``dvar W_then = 2 var``.
    It is never negative, exact where W was scaled, and nearer to the variance than the expansion of
    nu in the paper, always.

    Args:
        covariance_now: cov, (C, L).
        rest: 0, or var without what was sampled of it, (C, L).
        inverse_var: 1 / var, and 0 where it is 0, (C, L).
    """
    now = covariance_now.add(rest)
    return (now * inverse_var).mul_(now)  # its square would overflow, of values of 1e10


def quadratic(W: Tensor, covariance: Tensor) -> Tensor:
    """``W_c S W_c^T`` of each lag, (C, L), with S (G, K, L, K): exact."""
    G, K, L, _ = covariance.shape
    products = (W @ covariance.view(G, K, L * K)).view(G, -1, L, K)
    return (products * W.unsqueeze(2)).sum(3).view(-1, L)


def combined(
    mean: Tensor, var: Tensor, borrowed_mean: Tensor, borrowed_var: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the window: ``mean(mu)``, and ``mean(var) + var(mu)``.

    Args:
        mean: (C,), of the current iteration.
        var: (C,), of the current iteration, biased.
        borrowed_mean: (C, L).
        borrowed_var: (C, L), at least 0.
        weights: (L + 1,), sum to 1; the last one is the current iteration's.
    """
    means_ = torch.cat((borrowed_mean, mean.unsqueeze(1)), 1)
    variances = torch.cat((borrowed_var, var.unsqueeze(1)), 1)
    centre = means_ @ weights
    spread = (means_ - centre.unsqueeze(1)).square_()
    return centre, variances.add_(spread) @ weights
