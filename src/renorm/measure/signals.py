"""Figures of one activation tensor: variance, mean square, and how alike its examples are."""

import torch
from torch import Tensor


def variance(x: Tensor, axis: int) -> float:
    """Over all dimensions but the channels', biased, in the mean over channels."""
    channels = _wide(x).movedim(axis, 0).flatten(1)
    return float(channels.var(1, correction=0).mean())


def mean_square(x: Tensor) -> float:
    """Over all elements."""
    return float(_wide(x).square().mean())


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
