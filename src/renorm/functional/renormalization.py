"""Batch renorm as a pure function: checked arguments in, output and new statistics out."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from renorm import kernels
from renorm.errors import ArgumentError
from renorm.kernels import Call, Outcome, accumulation_dtype, finished

__all__ = ["batch_renorm"]


def batch_renorm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    r_max: float | Tensor,
    d_max: float | Tensor,
    momentum: float | Tensor = 0.01,
    eps: float = 1e-5,
    mask: Tensor | None = None,
    microbatch: int | None = None,
    single: Literal["raise", "running"] = "raise",
    residual: Tensor | None = None,
    relu: bool = False,
    kernel: str | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Normalize a training batch by Batch Renormalization; nothing is written in place.

    Per channel, over batch and positions, with the biased batch variance and eps inside roots::

        sigma_B = sqrt(var_B + eps)        sigma = sqrt(running_var + eps)
        r = clip(sigma_B / sigma, 1 / r_max, r_max)            # no gradient
        d = clip((mu_B - running_mean) / sigma, -d_max, d_max)  # no gradient
        y = weight * ((x - mu_B) / sigma_B * r + d) + bias
        new_mean = running_mean + momentum * (mu_B - running_mean)
        new_var  = (sigma + momentum * (sigma_B - sigma)) ** 2 - eps

    r and d use the statistics from before this step; the standard deviation is averaged, not the
    variance. Statistics are taken in float32 at least. A batch with non-finite statistics returns
    the old statistics, while y carries the non-finite values on.

    Args:
        x: input (N, C, *spatial), floating point.
        running_mean: (C,), or None, with running_var, for batch norm without a reference.
        running_var: (C,), or None.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        r_max: bound of r, at least 1; a float or a 0-d tensor.
        d_max: bound of d, at least 0; a float or a 0-d tensor.
        momentum: update rate of the running statistics in one call, 0 to 1.
        eps: added to variances, above 0.
        mask: (N, *spatial) bool, True where x is data. Padding enters no statistic, and y is 0
            there. A group with fewer than two values is normalized by the running statistics.
        microbatch: examples that share statistics; the last group may be smaller. The running
            statistics take one step towards the average over groups, weighted by their values.
        single: what to do where a channel has one value: ``"raise"``, or normalize it by the
            ``"running"`` statistics and leave them as they are.
        residual: as x, or None; added to y, as at the end of a residual block.
        relu: whether negative values of the result become 0, at last.
        kernel: which implementation, see ``renorm env``; None has the fastest one chosen.

    Returns:
        ``(y, new_mean, new_var)``; y has the dtype and memory format of x, the statistics those
        of the running ones, and are None where these are.

    Raises:
        ArgumentError: an argument outside the ranges above; nothing was computed.

    Source: Ioffe 2017 (arXiv 1702.03275), Algorithm 1.

    >>> x = torch.tensor([[1.0], [3.0]])
    >>> y, mean, var = batch_renorm(x, torch.zeros(1), torch.ones(1), r_max=3, d_max=5)
    >>> y.flatten(), mean, var  # unclipped: (x - running_mean) / sigma
    (tensor([1.0000, 3.0000]), tensor([0.0200]), tensor([1.]))
    """
    call = Call(
        x,
        running_mean,
        running_var,
        weight,
        bias,
        r_max,
        d_max,
        momentum,
        eps,
        mask,
        microbatch,
        residual,
        relu,
    )
    check(call, single)
    outcome = apply(call, kernel)
    counted = outcome.counted
    new_mean = stored(outcome.new_mean, running_mean, counted)
    return outcome.y, new_mean, stored(outcome.new_var, running_var, counted)


def stored(new: Tensor | None, old: Tensor | None, counted: Tensor | None) -> Tensor | None:
    """A new statistic in the dtype of the old one, which is exactly kept if nothing counted."""
    if new is None or old is None or new.dtype == old.dtype:
        return new
    return torch.where(counted, new.to(old.dtype), old)  # type: ignore[arg-type]


def apply(call: Call, kernel: str | None = None) -> Outcome:
    """Compute a checked call; an empty batch passes through and counts for nothing."""
    if call.x.numel() > 0 or call.group is not None:  # others may have examples
        return kernels.run(call, kernel)
    zeros = call.x.new_zeros(call.x.shape[1], dtype=accumulation_dtype(call.x.dtype))
    y = F.batch_norm(call.x, zeros, zeros, call.weight, call.bias, eps=call.eps)
    y = finished(y, call)
    counted = torch.zeros((), dtype=torch.bool, device=call.x.device)
    mean, var = (None if t is None else t.detach().clone() for t in call[1:3])
    return Outcome(y, zeros.unsqueeze(0), mean, var, counted)


def check(call: Call, single: str) -> None:
    """Refuse what would compute something else than was meant.

    Limits and momentum are looked at only where they are numbers: reading a tensor would stop
    the device.
    """
    x = call.x
    if x.dim() < 2 or not x.is_floating_point():
        raise ArgumentError(
            f"x must be floating point of shape (N, C, *spatial), got {x.dtype} of shape "
            f"{tuple(x.shape)}."
        )
    if (call.running_mean is None) != (call.running_var is None):
        missing = "running_mean" if call.running_mean is None else "running_var"
        raise ArgumentError(
            f"running_mean and running_var come together, but {missing} is None. Give both, or "
            "None for both to use batch statistics alone."
        )
    shape, device = (x.shape[1],), x.device
    for t in (call.running_mean, call.running_var, call.weight, call.bias):
        if t is not None and (t.shape != shape or t.device != device):
            raise _mismatch(call)
    if call.residual is not None:
        check_residual(x, call.residual)
    _check_limits(call)
    check_settings(call.momentum, call.eps, call.microbatch, single)
    if call.mask is not None:
        check_mask(x, call.mask)
    elif call.group is None and (x.shape[0] <= 1 or call.microbatch is not None):
        _check_counts(call, single)


def _mismatch(call: Call) -> ArgumentError:
    """What is wrong with a statistic or parameter that does not fit x."""
    x, shape = call.x, (call.x.shape[1],)
    for name in ("running_mean", "running_var", "weight", "bias"):
        value = getattr(call, name)
        if value is not None and value.shape != shape:
            return ArgumentError(
                f"{name} must have one value per channel, shape ({x.shape[1]},) for x of shape "
                f"{tuple(x.shape)}, got shape {tuple(value.shape)}."
            )
        if value is not None and value.device != x.device:
            return ArgumentError(
                f"{name} is on {value.device} and x on {x.device}. Move both to one device."
            )
    raise AssertionError("everything fits")


def _check_limits(call: Call) -> None:
    if isinstance(call.r_max, (int, float)) and not call.r_max >= 1:
        raise ArgumentError(f"r_max must be at least 1 (1: no scale correction), got {call.r_max}.")
    if isinstance(call.d_max, (int, float)) and not call.d_max >= 0:
        raise ArgumentError(f"d_max must be at least 0 (0: no shift correction), got {call.d_max}.")


def check_settings(
    momentum: float | Tensor | None,
    eps: float,
    microbatch: int | None,
    single: str,
    kernel: str | None = None,
) -> None:
    """Refuse settings outside their ranges; a momentum of None is the cumulative average."""
    if momentum is not None and not isinstance(momentum, Tensor) and not 0 <= momentum <= 1:
        raise ArgumentError(
            f"momentum is the update rate of the running statistics, from 0 to 1, got {momentum}."
        )
    if not eps > 0:
        raise ArgumentError(f"eps must be positive, got {eps}.")
    if microbatch is not None and (not isinstance(microbatch, int) or microbatch < 1):
        raise ArgumentError(
            f"microbatch is the number of examples that share statistics, at least 1, got "
            f"{microbatch!r}. Use None for the whole batch."
        )
    if single not in ("raise", "running"):
        raise ArgumentError(f"single must be 'raise' or 'running', got {single!r}.")
    kernels.check_name(kernel)


def check_residual(x: Tensor, residual: Tensor) -> None:
    """Refuse a residual that could be added only by broadcasting or converting it."""
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise ArgumentError(
            f"residual is added to the output and must be like x, {x.dtype} of shape "
            f"{tuple(x.shape)} on {x.device}; got {residual.dtype} of shape "
            f"{tuple(residual.shape)} on {residual.device}."
        )


def check_mask(x: Tensor, mask: Tensor) -> None:
    """Refuse a mask that does not say of each position of x whether it is data."""
    shape = (x.shape[0], *x.shape[2:])
    if mask.dtype != torch.bool or tuple(mask.shape) != shape or mask.device != x.device:
        raise ArgumentError(
            f"mask must be bool of shape (N, *spatial) = {shape} on {x.device}, True = real data; "
            f"got {mask.dtype} of shape {tuple(mask.shape)} on {mask.device}."
        )


def _check_counts(call: Call, single: str) -> None:
    """Refuse a group of one value, where nothing says what to do with it.

    Under a mask counts are data, and the running statistics serve.
    """
    n, size = call.x.shape[0], call.microbatch or call.x.shape[0]
    smallest = n % size if size and n % size else min(n, size)
    if smallest * call.x.shape[2:].numel() != 1:
        return
    if call.running_mean is None:
        remedy = "Give running statistics and single='running', or more values."
    elif single == "running":
        return
    else:
        remedy = (
            "Use larger batches, drop the last incomplete one, or normalize such a group by the "
            "running statistics with single='running'."
        )
    raise ArgumentError(
        f"One value per channel has no spread to normalize by: x of shape "
        f"{tuple(call.x.shape)} with microbatch={call.microbatch} leaves a group of one. {remedy}"
    )
