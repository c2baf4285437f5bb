"""EvoNorm-S0: a gate and the deviation of a group of channels, found by search."""

import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.nn.normalizers.base import Normalizer, per_channel, variance
from renorm.nn.normalizers.groups import group_count


class EvoNormS0(Normalizer):
    """A gated value over the deviation of its group of channels in one example.

    Nothing depends on the batch, so training and eval are one function; with the biased variance
    of a group of neighbouring channels over its channels and positions::

        y = weight * x * sigmoid(v * x) / sqrt(var_G + eps) + bias

    The gate is the nonlinearity, with a learned ``v`` per channel that starts at 1: no other is to
    follow. (N, C) input is as good as a map as long as a group holds more than one value.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance inside the root.
        groups: how many groups; by default 32, or one per channel where there are fewer.
        group_size: channels per group, instead of ``groups``.
        affine: whether there are weight and bias; ``v`` is there either way.
        device, dtype: of the parameters.

    Source: Liu, Brock, Simonyan and Le 2020 (arXiv 2004.02967).

    >>> EvoNormS0(64, group_size=4)
    EvoNormS0(64, eps=1e-05, affine=True, groups=16)
    """

    activates = True

    v: nn.Parameter
    groups: int

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        groups: int | None = None,
        group_size: int | None = None,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device, dtype)
        self.groups = group_count(num_features, groups, group_size)
        self.v = self._parameter(1.0, device, dtype)

    def _normalized(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (self.groups, self.num_features // self.groups))
        _check_group(self, grouped)
        var = variance(grouped, list(range(2, grouped.dim())))
        var = var.expand(*grouped.shape[:3], *var.shape[3:]).flatten(1, 2)
        gate = (per_channel(self.v, x) * x).sigmoid()
        return self._scaled(x * gate * (var + self.eps).rsqrt())

    def extra_repr(self) -> str:
        """The settings, as ``print(model)`` shows them."""
        return f"{super().extra_repr()}, groups={self.groups}"


def _check_group(layer: EvoNormS0, grouped: Tensor) -> None:
    """Refuse groups of a single value."""
    size = 1
    for n in grouped.shape[2:]:
        size = size * n
    if size == 1:
        raise ArgumentError(
            f"EvoNormS0 with groups={layer.groups} of {layer.num_features} channels has a single "
            "value per group in input without positions, which has no spread to normalize by. "
            "Build it with fewer groups."
        )
