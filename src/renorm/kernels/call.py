"""What a kernel is given and what it gives back: the interface that every backend shares."""

from typing import NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """One normalization, already validated; shapes in the project's letters.

    ``running_mean`` and ``running_var`` are both None (no reference: plain batch norm) or both
    of shape (C,). ``r_max``, ``d_max`` and ``momentum`` are floats or 0-d tensors.
    """

    x: Tensor  # (N, C, *spatial)
    running_mean: Tensor | None  # (C,)
    running_var: Tensor | None  # (C,)
    weight: Tensor | None  # (C,)
    bias: Tensor | None  # (C,)
    r_max: float | Tensor
    d_max: float | Tensor
    momentum: float | Tensor
    eps: float
    mask: Tensor | None = None  # (N, *spatial) bool, True = real data
    microbatch: int | None = None
    residual: Tensor | None = None  # as x; added to what was normalized
    relu: bool = False  # at last, negative values become 0


class Outcome(NamedTuple):
    """The output, and statistics that carry no gradient."""

    y: Tensor  # (N, C, *spatial), dtype and memory format of x
    batch_mean: Tensor  # (G, C): one row a group of examples
    new_mean: Tensor | None  # (C,)
    new_var: Tensor | None  # (C,)
    counted: Tensor | None  # () bool: whether this batch entered the new statistics


def finished(y: Tensor, call: Call) -> Tensor:
    """The output of a kernel that only normalizes, with the residual and the ReLU of the call."""
    if call.residual is not None:
        y = y + call.residual
    return y.relu() if call.relu else y


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of all statistics: float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
