"""Statistics of a window of iterations in C: each step would be several small operations.

Everything is in one dtype, float32 or float64, and lies as ``window.h`` beside this file says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from renorm.kernels import cpu
from renorm.kernels.layout import PLAIN

if TYPE_CHECKING:  # it is imported where it is used: importing this package stays quick
    import numpy as np

_REAL = (torch.float32, torch.float64)
Lags = tuple[Tensor, Tensor]  # mean (C, L + 1) and var (C, L)


def usable(t: Tensor) -> bool:
    """Whether tensors like t, in its dtype, can be computed with."""
    return (
        cpu.MISSING is None
        and t.dtype in _REAL
        and t.is_cpu
        and not torch._C._len_torch_dispatch_stack()
    )


def readable(dtype: torch.dtype, *tensors: Tensor | None) -> bool:
    """Whether all are plain tensors of this dtype on the cpu whose memory is their values."""
    return all(
        t is None
        or (
            type(t) in PLAIN
            and t.dtype is dtype
            and t.is_cpu
            and t.is_contiguous()
            and not t.is_neg()
        )
        for t in tensors
    )


def write_mean(x: Tensor, shares: Tensor, groups: int, out: Tensor) -> None:
    """Write E[p] of x (N, C_in, *spatial) into out (G, K), by shares (k, S) of the outputs."""
    (N, channels), (k, S) = x.shape[:2], shares.shape
    room = shares.new_empty(channels, S)
    cpu.native.mean_patch(x, shares, room, out, N, channels, S, k, groups, out.stride(0))


def derived(
    W: Tensor,
    bias: Tensor | None,
    mean_patch: Tensor,
    derivative: Tensor,
    offset: Tensor,
    rest: Tensor,
    inverse_var: Tensor,
) -> Lags:
    """Mean and variance of the lags by the derivative (C, L, K) of each.

    Args:
        W: of now, (G, C / G, K).
        bias: of now, (C,).
        mean_patch: (G, L + 1, K).
        derivative: (C, L, K).
        offset: (C, L + 1).
        rest: (C, L).
        inverse_var: (C, L).
    """
    mean, var = torch.empty_like(offset), torch.empty_like(rest)
    G, _, K = W.shape
    kept = (offset, rest, inverse_var, bias, *rest.shape)
    cpu.native.derived(mean, var, *kept, W, mean_patch, derivative, G, K)
    return mean, var


def sampled(
    products: Tensor,
    bias: Tensor | None,
    outputs: Tensor | None,
    offset: Tensor,
    rest: Tensor,
    inverse_var: Tensor | None,
) -> Lags:
    """Mean and variance of the lags by products of the weights with patches.

    Args:
        products: (C, L + 1 + L * s), of mean patches and behind them of s patches of each lag.
        bias: of now, (C,).
        outputs: of then at the same positions, (C, L, s), where the variance is expanded.
        offset: (C, L + 1).
        rest: (C, L).
        inverse_var: (C, L), with ``outputs``.
    """
    mean, var = torch.empty_like(offset), torch.empty_like(rest)
    L = rest.shape[1]
    s = (products.shape[-1] - L - 1) // L
    kept = (offset, rest, inverse_var, bias, *rest.shape)
    cpu.native.sampled(mean, var, *kept, products, outputs, s)
    return mean, var


def combined(
    mean: Tensor, var: Tensor, lags: Lags | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, bool]:
    """Mean and variance (C,) of the window, and whether all of it is finite.

    Args:
        mean: (C,), of the current iteration.
        var: (C,).
        lags: mean and variance, (C, L) each, whose rows may lie apart; None for no lags.
        weights: (L + 1,), of the lags and the current iteration; None for no lags.
    """
    out = mean.new_empty(2, len(mean))
    if lags is None:
        finite = cpu.native.combined(out, mean, var, None, None, None, len(mean), 0, 0, 0)
    else:
        apart = (lags[0].stride(0), lags[1].stride(0))
        sizes = lags[1].shape
        finite = cpu.native.combined(out, mean, var, *lags, weights, *sizes, *apart)
    return out[0], out[1], finite


def keep(
    mean: Tensor,
    var: Tensor,
    own_mean: Tensor | None,
    kept: dict[str, Tensor],
    slot: int,
    *,
    no_rest: bool,
) -> None:
    """Put the statistics of an iteration in the place ``slot`` of a history.

    Args:
        mean: (C,), of the iteration.
        var: (C,).
        own_mean: W E[p] + bias (C,), the last column of (C, L + 1); None for zeros.
        kept: ``offset`` (C, L + 1), ``rest`` (C, L), ``valid`` (L,), and (C, L) ``inverse_var``
            where the variance is expanded.
        slot: from 0 to L - 1.
        no_rest: whether what the variance needs beside this tells all of it.
    """
    offset, rest, valid, inverse_var = (
        kept["offset"], kept["rest"], kept["valid"], kept.get("inverse_var")
    )  # fmt: skip
    places = (offset, rest, inverse_var, valid, *rest.shape)
    cpu.native.keep(mean, var, own_mean, *places, slot, no_rest)


def sample(
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    kept: dict[str, Tensor],
    slot: int,
    where: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Keep n positions of an iteration in the place ``slot``, and take what they tell off ``rest``.

    Args:
        x: input of the source, (N, C_in, *spatial).
        y: its output, (N, C, *spatial).
        mean: of y, (C,).
        kept: ``patches`` (G, L + 1 + L * s, K), of which row L is the mean of now, ``rest`` (C, L),
            and ``outputs`` (C, L, s) where the variance is expanded.
        slot: from 0 to L - 1.
        where: example and output place (n,) of the positions, and the inputs (n, k) read there.
    """
    patches, rest = kept["patches"], kept["rest"]
    (C, L), (G, R, K), (n, k) = rest.shape, patches.shape, where[2].shape
    channels, examples = x.shape[1], len(x)
    cpu.native.sample(
        x,
        y,
        mean,
        patches,
        kept.get("outputs"),
        rest,
        *map(torch.from_numpy, where),
        *(C, G, K, L, (R - L - 1) // L, n, slot),
        *(channels, x.numel() // (examples * channels), k, y.numel() // (examples * C)),
    )


def gather(x: Tensor, groups: int, example: np.ndarray, read: np.ndarray) -> Tensor:
    """Patches (G, n, K) of x (N, C_in, *spatial).

    Args:
        x: input of a convolution.
        groups: G.
        example: of each patch, (n,).
        read: inputs at each place of the kernel, (n, k), -1 for a zero.
    """
    (examples, channels), (n, k) = x.shape[:2], read.shape
    out = x.new_empty(groups, n, channels // groups * k)
    where = torch.from_numpy(example), torch.from_numpy(read)
    inputs = x.numel() // (examples * channels)
    cpu.native.gather(x, out, *where, groups, out.shape[2], n, channels, inputs, k)
    return out


def track(
    running_mean: Tensor,
    running_var: Tensor,
    counter: Tensor | None,
    mean: Tensor,
    var: Tensor,
    rate: float,
    unbiased: float,
) -> None:
    """Move running statistics (C,) in place, the variance times a factor, and count it."""
    statistics = (running_mean, running_var, mean, var)
    cpu.native.track(*statistics, counter, len(mean), rate, unbiased)
    moved = [running_mean, running_var] if counter is None else [running_mean, running_var, counter]
    torch._C._increment_version(moved)
