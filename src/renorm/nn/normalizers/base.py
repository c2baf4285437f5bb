"""What the normalizers of this package share: arguments, parameters, dtypes and shapes."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.kernels import accumulation_dtype
from renorm.nn.inputs import check_input


class Normalizer(nn.Module, ABC):
    """Base of the layers here: (N, C) or (N, C, *spatial) in, the same shape and dtype out.

    Everything is computed in at least float32, and rounded to the dtype of the input once.

    Args:
        num_features: C, the number of channels.
        eps: keeps denominators away from 0; each class says where it is added.
        affine: whether there are weight and bias (C,), 1 and 0 at first.
        device, dtype: of parameters and buffers.
    """

    activates: ClassVar[bool] = False  # whether it contains the nonlinearity: none is to follow

    num_features: int
    eps: float
    affine: bool
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        affine: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if isinstance(num_features, bool) or not isinstance(num_features, int) or num_features < 1:
            raise ArgumentError(
                f"num_features is the number of channels, an int of at least 1, got "
                f"{num_features!r}."
            )
        if not eps > 0:
            raise ArgumentError(f"eps must be positive, got {eps}.")
        self.num_features = num_features
        self.eps = eps
        self.affine = affine
        self.weight = self.bias = None
        if affine:
            self.weight = self._parameter(1.0, device, dtype)
            self.bias = self._parameter(0.0, device, dtype)

    def _parameter(
        self, value: float, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> nn.Parameter:
        """One number per channel."""
        return nn.Parameter(torch.full((self.num_features,), value, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input`` (N, C, *spatial), floating point.

        Raises:
            ArgumentError: another shape or dtype, or too few values for the statistics.
        """
        check_input(self, input, ())
        if not input.is_floating_point():
            raise ArgumentError(
                f"{type(self).__name__} takes floating point input, got {input.dtype}. Convert it "
                "first: x.float()."
            )
        y = self._normalized(input.to(accumulation_dtype(input.dtype)))
        return y.to(input.dtype)

    @abstractmethod
    def _normalized(self, x: Tensor) -> Tensor:
        """The output for ``x`` (N, C, *spatial), float32 or float64."""

    def _scaled(self, x: Tensor) -> Tensor:
        """``weight * x + bias``, if there are any."""
        if self.weight is not None:
            x = per_channel(self.weight, x) * x
        return x if self.bias is None else x + per_channel(self.bias, x)

    def extra_repr(self) -> str:
        """The settings, as ``print(model)`` shows them."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


def per_channel(t: Tensor, x: Tensor) -> Tensor:
    """``t`` (C,) as it is broadcast to ``x`` (N, C, *spatial), in the dtype of that."""
    return t.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))


def over_batch(x: Tensor) -> list[int]:
    """The dimensions that a statistic of the batch is taken over: all but that of channels."""
    return [0, *range(2, x.dim())]


def over_positions(x: Tensor) -> list[int]:
    """The dimensions that a statistic of one channel of one example is taken over."""
    return list(range(2, x.dim()))


def variance(x: Tensor, dims: list[int]) -> Tensor:
    """The biased variance over ``dims``, which stay with size 1; centred before it is squared."""
    centred = x - x.mean(dims, keepdim=True)
    return centred.square().mean(dims, keepdim=True)


def check_count(layer: Normalizer, x: Tensor) -> int:
    """The number of values per channel, refused if it is 1: these have no spread."""
    count = x.numel() // layer.num_features
    if count == 1:
        raise ArgumentError(
            f"{type(layer).__name__} in training has a single value per channel in x of shape "
            f"{tuple(x.shape)}, which has no spread to normalize by. Give it more examples or "
            "positions, or call eval()."
        )
    return count


def check_positions(layer: Normalizer, x: Tensor, remedy: str) -> None:
    """Refuse an input whose channels have a single value in each example."""
    if x.dim() == 2 or all(size == 1 for size in x.shape[2:]):
        raise ArgumentError(
            f"{type(layer).__name__} takes statistics over the positions of one channel of one "
            f"example, and x of shape {tuple(x.shape)} has a single one. {remedy}"
        )
