"""Batch norm that divides by another norm than the second."""

import math

import torch
from torch import Tensor

from renorm.errors import ArgumentError
from renorm.nn.normalizers.base import check_count, over_batch, per_channel
from renorm.nn.normalizers.running import RunningNormalizer, unbiased


class LpBatchNorm(RunningNormalizer):
    """Batch norm with the average l_p norm of a channel in place of its standard deviation.

    In training, with statistics over all examples and positions of a channel::

        y = weight * (x - mean_B) / scale + bias,    u = x - mean_B, or x if not centred

        p = 1:    scale = mean(|u|) + eps
        p = 2:    scale = sqrt(mean(u^2) + eps)
        p = inf:  scale = max(|u|) + eps

    These are the power means (mean(|u|^p))^(1/p), without the factor sqrt(pi / 2) that would make
    the first one of a Gaussian its standard deviation: such a factor is ``weight``'s to learn. The
    gradient flows through the mean and the scale; where values tie for the maximum, they share it.

    p = 2 with ``centred`` is batch norm: the same function, gradients, running statistics and
    state_dict as nn.BatchNorm. Its ``running_var`` averages the unbiased variance. The others have
    ``running_moment`` instead, which averages mean(|u|), mean(u^2) or max(|u|) as it is. Eval puts
    ``running_mean`` and this in place of the batch's. One value per channel raises in training. A
    batch with a non-finite statistic leaves the running statistics as they are.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance inside the root for p = 2, and to the norm for the others.
        momentum: update rate of the running statistics, 0 to 1; None for the average over all
            batches.
        p: 1, 2 or math.inf.
        centred: whether the norm is that of x - mean_B, or of x itself before the mean is
            subtracted from the numerator, the other way to read "average l_p norm".
        affine: whether there are weight and bias.
        device, dtype: of parameters and buffers.

    Source: Santurkar, Tsipras, Ilyas and Madry 2018 (arXiv 1805.11604), section 3.3.

    >>> y = LpBatchNorm(4, p=math.inf)(torch.randn(64, 4))
    >>> round(y.abs().max().item(), 3)
    1.0
    """

    p: float
    centred: bool
    running_mean: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        p: float = 1,
        centred: bool = True,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if p not in (1, 2, math.inf):
            raise ArgumentError(f"p is the order of the norm, 1, 2 or math.inf, got {p!r}.")
        self._moment_name = "running_var" if p == 2 and centred else "running_moment"
        statistics = {"running_mean": 0.0, self._moment_name: 1.0}
        super().__init__(num_features, eps, momentum, affine, device, dtype, statistics)
        self.p = p
        self.centred = centred

    def _normalized(self, x: Tensor) -> Tensor:
        if self.training:
            count = check_count(self, x)
            mean = x.mean(over_batch(x), keepdim=True)
            centred = x - mean
            moment = self._moment(centred if self.centred else x)
            kept = moment.detach().flatten()
            if self._moment_name == "running_var":
                kept = unbiased(kept, count)
            self._track({"running_mean": mean.detach().flatten(), self._moment_name: kept})
        else:
            centred = x - per_channel(self.running_mean, x)
            moment = per_channel(self.get_buffer(self._moment_name), x)
        scale = (moment + self.eps).sqrt() if self.p == 2 else moment + self.eps
        return self._scaled(centred / scale)

    def _moment(self, u: Tensor) -> Tensor:
        """mean(|u|), mean(u^2) or max(|u|) of each channel, (1, C, 1, ...)."""
        dims = over_batch(u)
        if self.p == 2:
            return u.square().mean(dims, keepdim=True)
        if self.p == 1 or u.numel() == 0:  # nothing has no maximum; its mean is NaN, not counted
            return u.abs().mean(dims, keepdim=True)
        return u.abs().amax(dims, keepdim=True)

    def extra_repr(self) -> str:
        """The settings, as ``print(model)`` shows them."""
        return f"{super().extra_repr()}, p={self.p}, centred={self.centred}"
