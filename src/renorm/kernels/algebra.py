"""The per-channel formulas that every kernel shares: r and d, and the running statistics.

All take and return (C,) or (G, C) tensors, with one row for each group of examples that is
normalized together, and all expect tensors that carry no gradient.
"""

from typing import Any

import torch
from torch import Tensor


def correction(
    mean: Tensor,
    var: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    r_max: float | Tensor,
    d_max: float | Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``r = clip(sigma_B / sigma, 1/r_max, r_max)`` and ``d = clip((mu_B - mu) / sigma, ±d_max)``.

    With ``sigma_B = sqrt(var + eps)`` (biased) and ``sigma = sqrt(running_var + eps)``.
    Source: Ioffe 2017, Algorithm 1.
    """
    sigma = (running_var + eps).sqrt()
    r = _clipped((var + eps).sqrt() / sigma, 1 / r_max, r_max)
    d = _clipped((mean - running_mean) / sigma, -d_max, d_max)
    return r, d


def _clipped(t: Tensor, low: Any, high: Any) -> Tensor:
    return t.clamp(low, high)  # both numbers or both 0-d tensors


def updated(
    mean: Tensor,
    var: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float | Tensor,
    eps: float,
    share: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The running statistics after this batch, and whether the batch was counted.

    ``mu += momentum * (mu_B - mu)`` and ``sigma += momentum * (sigma_B - sigma)``; the stored
    variance is ``sigma^2 - eps``. Squaring sigma would round away variances far below eps, so the
    step of the variance is written out: with ``delta = sigma_B - sigma``,
    ``var += momentum * delta * (2 * sigma + momentum * delta)``, the same number.

    A batch with any non-finite statistic is not counted and changes nothing, decided on the
    device: one overflow must not poison the statistics for ever.

    Args:
        mean: batch mean (C,), or (G, C) with ``share``.
        var: biased batch variance, as ``mean``.
        running_mean: (C,), before this batch.
        running_var: (C,), before this batch.
        momentum: update rate of this call, not of each group.
        eps: inside both roots.
        share: (G, 1), what part each group has in the update; sums to 1, or to 0 if no group
            has statistics.
    """
    sigma, mean_step, sigma_step = _steps(mean, var, running_mean, running_var, eps)
    counted = mean_step.isfinite().all() & sigma_step.isfinite().all()
    if share is not None:
        mean_step = (share * mean_step).sum(0)
        sigma_step = (share * sigma_step).sum(0)
        counted = counted & (share.sum() > 0)
    new_mean, new_var = _moved(running_mean, running_var, sigma, mean_step, sigma_step, momentum)
    return (
        torch.where(counted, new_mean, running_mean),
        torch.where(counted, new_var, running_var),
        counted,
    )


def moved(
    mean: Tensor,
    var: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float | Tensor,
    eps: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """The running statistics after finite batch statistics, as ``updated`` has them.

    The channels may be those of many layers, with momentum and eps of each: all are (C,).
    """
    sigma, mean_step, sigma_step = _steps(mean, var, running_mean, running_var, eps)
    return _moved(running_mean, running_var, sigma, mean_step, sigma_step, momentum)


def _steps(
    mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor, eps: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The running sigma, and how far mean and sigma of the batch are from the running ones."""
    sigma = (running_var + eps).sqrt()
    return sigma, mean - running_mean, (var - running_var) / ((var + eps).sqrt() + sigma)


def _moved(
    running_mean: Tensor,
    running_var: Tensor,
    sigma: Tensor,
    mean_step: Tensor,
    sigma_step: Tensor,
    momentum: float | Tensor,
) -> tuple[Tensor, Tensor]:
    new_mean = running_mean + momentum * mean_step
    new_var = running_var + momentum * sigma_step * (2 * sigma + momentum * sigma_step)
    return new_mean, new_var.clamp(min=0)  # rounding alone can go below


def affine(
    weight: Tensor | None,
    bias: Tensor | None,
    r: Tensor | None,
    d: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """``(weight * r, weight * d + bias)``, what batch norm is given to be batch renorm."""
    shift = None if d is None else product(weight, d, dtype)
    if bias is not None:
        shift = bias.to(dtype) if shift is None else shift + bias.to(dtype)
    return product(weight, r, dtype), shift


def product(weight: Tensor | None, factor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``weight * factor``, where None is 1; None if both are."""
    if weight is None or factor is None:
        return factor if weight is None else weight.to(dtype)
    return (weight * factor).to(dtype)
