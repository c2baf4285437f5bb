"""EvoNorm-B0: normalization by the batch and the instance, found by search."""

import torch
from torch import Tensor, nn

from renorm.nn.normalizers.base import (
    check_count,
    check_positions,
    over_batch,
    over_positions,
    per_channel,
    variance,
)
from renorm.nn.normalizers.running import RunningNormalizer, unbiased


class EvoNormB0(RunningNormalizer):
    """Division by the larger of the batch's deviation and a line of the value itself.

    With biased variances, var_B of a channel over examples and positions, and var_I over the
    positions of one example::

        y = weight * x / max(sqrt(var_B + eps), v * x + sqrt(var_I + eps)) + bias

    The maximum is the nonlinearity, with a learned ``v`` per channel that starts at 1: no other
    is to follow. Eval has ``running_var``, which averages the unbiased variance as nn.BatchNorm
    does, in place of var_B; var_I is that of the example in eval too. The formula needs more than
    one position: (N, C) input and 1 x 1 maps are refused. A batch with a non-finite variance
    leaves the running statistics as they are.

    Args:
        num_features: C, the number of channels.
        eps: added to both variances inside their roots.
        momentum: update rate of ``running_var``, 0 to 1; None for the average over all batches.
        affine: whether there are weight and bias; ``v`` is there either way.
        device, dtype: of parameters and buffers.

    Source: Liu, Brock, Simonyan and Le 2020 (arXiv 2004.02967).

    >>> EvoNormB0(4)(torch.randn(2, 4, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    activates = True

    v: nn.Parameter
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device, dtype, {"running_var": 1.0})
        self.v = self._parameter(1.0, device, dtype)

    def _normalized(self, x: Tensor) -> Tensor:
        check_positions(self, x, "Use EvoNormS0 with groups of channels for such input.")
        if self.training:
            count = check_count(self, x)
            var = variance(x, over_batch(x))
            self._track({"running_var": unbiased(var, count)})
        else:
            var = per_channel(self.running_var, x)
        instance = (variance(x, over_positions(x)) + self.eps).sqrt()
        line = per_channel(self.v, x) * x + instance
        return self._scaled(x / torch.maximum((var + self.eps).sqrt(), line))
