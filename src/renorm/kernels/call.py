"""What a kernel is given and what it gives back: the interface that every backend shares."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from renorm.limits import Ramp


class Averages(NamedTuple):
    """What backward passes leave for later ones: means over values, of the gradient g = dL/dy."""

    values: Tensor  # (2, C): moving averages of mean(g) and mean(g x_hat), before weight and bias
    passes: Tensor  # (): backward passes so far
    momentum: float  # their update rate


class Call(NamedTuple):
    """One normalization, already validated; shapes in the project's letters.

    ``running_mean`` and ``running_var`` are both None (no reference: plain batch norm) or both
    of shape (C,). ``r_max``, ``d_max`` and ``momentum`` are floats or 0-d tensors; the first two
    may also be ramps, for a kernel to evaluate at the ``counter`` where that lies.

    With ``in_place`` a kernel that can moves the running statistics and the counter itself, after
    it has read them, and its outcome may have none.
    """

    x: Tensor  # (N, C, *spatial)
    running_mean: Tensor | None  # (C,)
    running_var: Tensor | None  # (C,)
    weight: Tensor | None  # (C,)
    bias: Tensor | None  # (C,)
    r_max: float | Tensor | Ramp
    d_max: float | Tensor | Ramp
    momentum: float | Tensor
    eps: float
    mask: Tensor | None = None  # (N, *spatial) bool, True = real data
    microbatch: int | None = None
    residual: Tensor | None = None  # as x; added to what was normalized
    relu: bool = False  # at last, negative values become 0
    counter: Tensor | None = None  # () int64: updates of the running statistics so far
    in_place: bool = False
    group: Any = None  # process group whose examples are normalized together with these
    sums: Tensor | None = None  # over the group, where they are known
    averages: Averages | None = None  # removed by the backward pass instead of a group's own means

    def bounds(self) -> tuple[float | Tensor, float | Tensor]:
        """``r_max`` and ``d_max``, ramps evaluated at the counter."""
        r_max, d_max = self.r_max, self.d_max
        if isinstance(r_max, Ramp):
            r_max = r_max(self.counter)
        if isinstance(d_max, Ramp):
            d_max = d_max(self.counter)
        return r_max, d_max


class Outcome(NamedTuple):
    """The output, and statistics that carry no gradient."""

    y: Tensor  # (N, C, *spatial), dtype and memory format of x
    batch_mean: Tensor | None  # (G, C), one row a group of examples; None after in_place
    new_mean: Tensor | None  # (C,)
    new_var: Tensor | None  # (C,)
    counted: Tensor | None  # () bool: whether this batch entered the new statistics
    values: Tensor | None = None  # () per channel in all processes of a group, if there is one


def finished(y: Tensor, call: Call) -> Tensor:
    """The output of a kernel that only normalizes, with the residual and the ReLU of the call."""
    if call.residual is not None:
        y = y + call.residual
    return y.relu() if call.relu else y


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of all statistics: float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
