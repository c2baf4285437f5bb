"""Variance norm: batch norm that leaves the mean where it is."""

import torch
from torch import Tensor

from renorm.nn.normalizers.base import check_count, over_batch, per_channel, variance
from renorm.nn.normalizers.running import RunningNormalizer, unbiased


class VarianceNorm(RunningNormalizer):
    """Division by the standard deviation of each channel, without subtracting a mean.

    In training, with the biased variance of the batch, all examples and positions of a channel::

        y = weight * x / sqrt(var_B + eps) + bias

    The variance is that about the mean of the channel, though the mean stays in the output. Eval
    has ``running_var`` in its place, which averages the unbiased variance as nn.BatchNorm does.
    One value per channel raises in training. A batch with a non-finite variance leaves the
    running statistics as they are.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance inside the root.
        momentum: update rate of ``running_var``, 0 to 1; None for the average over all batches.
        affine: whether there are weight and bias.
        device, dtype: of parameters and buffers.

    Source: Lubana, Dick and Tanaka 2021 (arXiv 2106.05956), which compares it with others.

    >>> layer = VarianceNorm(4)
    >>> x = 5 + torch.randn(64, 4, 3, 3)
    >>> bool((layer(x).mean() > 3).item())
    True
    """

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

    def _normalized(self, x: Tensor) -> Tensor:
        if self.training:
            count = check_count(self, x)
            var = variance(x, over_batch(x))
            self._track({"running_var": unbiased(var, count)})
        else:
            var = per_channel(self.running_var, x)
        return self._scaled(x * (var + self.eps).rsqrt())
