"""The moments of a batch that lies in several processes, by one sum over them."""

from typing import NamedTuple

import torch
from torch import Tensor

from renorm import collectives
from renorm.collectives import Group


class Joint(NamedTuple):
    """Moments over all processes of a group; float64, and the same bits in each."""

    values: Tensor  # () per channel
    mean: Tensor  # (C,)
    var: Tensor  # (C,), biased


def joint(values: Tensor, mean: Tensor, var: Tensor, group: Group) -> Joint:
    """Pool the moments of this process's part with those of the others; differentiable.

    What is summed is ``(n, n * mean, n * (var + mean^2))``: raw moments need no centre that all
    know before. In float64 their difference is good to 2e-16 * (mean / std)^2 of the variance;
    float32 data at mean/std 1e4 keep 8 digits.

    Args:
        values: (), this process's values per channel, which may be 0.
        mean: (C,), in float64 where rounding it matters.
        var: (C,), biased.
        group: whose processes all call this.
    """
    n, m, v = values.double().view(()), mean.double(), var.double()
    sums = torch.cat([n.view(1), n * m, n * (v + m.square())])
    count, first, second = collectives.total(sums, group).split([1, len(m), len(m)])
    divisor = count.clamp(min=1)
    pooled = first / divisor
    return Joint(count[0], pooled, (second / divisor - pooled.square()).clamp(min=0))
