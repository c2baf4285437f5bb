"""Running statistics as nn.BatchNorm keeps them, but for batches that are not finite."""

from collections.abc import Mapping

import torch
from torch import Tensor

from renorm.errors import ArgumentError
from renorm.nn.normalizers.base import Normalizer


class RunningNormalizer(Normalizer):
    """Base of the layers that normalize by the batch in training, and by averages in eval.

    Args:
        num_features, eps, affine, device, dtype: as ``Normalizer`` has them.
        momentum: update rate of the running statistics, 0 to 1; None for the plain average over
            all batches so far.
        statistics: what is averaged, by buffer name, and what a new layer has.
    """

    momentum: float | None
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        statistics: Mapping[str, float],
    ) -> None:
        super().__init__(num_features, eps, affine, device, dtype)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ArgumentError(
                "momentum is the update rate of the running statistics, from 0 to 1, or None for "
                f"the average over all batches; got {momentum}."
            )
        self.momentum = momentum
        for name, value in statistics.items():
            self.register_buffer(
                name, torch.full((num_features,), value, device=device, dtype=dtype)
            )
        count = torch.zeros((), dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", count)

    @torch.no_grad()
    def _track(self, statistics: Mapping[str, Tensor]) -> None:
        """Move the buffers of these names towards the values (C,) of a batch.

        A batch that would leave anything non-finite there is not counted and changes nothing,
        decided on the device.
        """
        moved = {}
        for name, value in statistics.items():
            buffer, rate = self.get_buffer(name), self.momentum
            if rate is None:
                rate = 1 / (self.num_batches_tracked + 1).to(value.dtype)
            moved[name] = ((1 - rate) * buffer.to(value.dtype) + rate * value).to(buffer.dtype)
        counted = torch.stack([value.isfinite().all() for value in moved.values()]).all()
        for name, value in moved.items():
            buffer = self.get_buffer(name)
            buffer.copy_(torch.where(counted, value, buffer))
        self.num_batches_tracked.add_(counted.long())

    def extra_repr(self) -> str:
        """The settings, as ``print(model)`` shows them."""
        return f"{super().extra_repr()}, momentum={self.momentum}"


def unbiased(var: Tensor, count: int) -> Tensor:
    """What nn.BatchNorm averages of a biased variance of ``count`` values per channel."""
    return var.detach().flatten() * (count / max(count - 1, 1))
