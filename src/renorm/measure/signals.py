"""Figures of one activation tensor: variance, mean square, and how alike its examples are."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Of an activation (N, ...) with channels.

    Args:
        variance: over all dimensions but the channels', biased, in the mean over channels.
        mean_square: over all elements.
    """

    variance: float
    mean_square: float


def moments(x: Tensor, axis: int) -> Moments:
    """Of ``x`` with channels along ``axis``."""
    x = x.detach()
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    others = [dim for dim in range(x.dim()) if dim != axis % x.dim()]
    found = _moments(x, others)
    if x.dtype == torch.float32 and not math.isfinite(sum(found)):
        return _moments(_wide(x), others)  # squares of what float32 holds may be too large for it
    return found


def _moments(x: Tensor, dims: list[int]) -> Moments:
    var, mean = torch.var_mean(x, dims, correction=0)
    return Moments(float(var.mean()), float((var + mean.square()).mean()))


def similarity(x: Tensor) -> tuple[float, float]:
    """Mean cosine of two different examples of ``x`` (N, ...), and the stable rank of all.

    The rank is ``N / lambda_max`` of the Gram matrix (N, N) of the cosines, whose trace is N. An
    example of zeros is orthogonal to all others. The time grows as N^3. NaN for a single example,
    and where x is not finite.

    >>> similarity(torch.eye(3))
    (0.0, 3.0)
    >>> cosine, rank = similarity(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    >>> round(cosine, 6), round(rank, 6)
    (1.0, 1.0)
    """
    rows = _wide(x).flatten(1)
    n = len(rows)
    if n < 2 or not bool(rows.isfinite().all()):
        return float("nan"), float("nan")
    rows = torch.nn.functional.normalize(rows)
    gram = (rows @ rows.T).cpu().double().fill_diagonal_(1)
    cosine = (float(gram.sum()) - n) / (n * (n - 1))
    return cosine, n / float(torch.linalg.eigvalsh(gram)[-1])


def _wide(x: Tensor) -> Tensor:
    """In float64, or what a device without it has."""
    return x.detach().to(torch.float32 if x.device.type == "mps" else torch.float64)
