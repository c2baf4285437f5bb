"""Filter response normalization, with the thresholded linear unit that belongs to it."""

import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.nn.normalizers.base import Normalizer, check_positions, over_positions, per_channel


class FilterResponseNorm(Normalizer):
    """Division by the root mean square of each channel of each example, and a learned threshold.

    Nothing depends on the batch, so training and eval are one function::

        y = max(weight * x / sqrt(mean(x^2) + eps + |learned_eps|) + bias, threshold)

    with the mean over the positions of one channel of one example, and no mean subtracted. The
    maximum is the thresholded linear unit (TLU), with a ``threshold`` per channel that starts at
    0, as ReLU: no other nonlinearity is to follow.

    Over a single position, (N, C) input or 1 x 1 maps, the quotient is the sign of x but for eps.
    The paper learns eps there; without ``learned_eps`` such input is refused.

    Args:
        num_features: C, the number of channels.
        eps: added to the mean square inside the root.
        learned_eps: where the learned part of eps starts, one number for all channels whose size
            is added to ``eps``, such as 1e-4; None for a layer that learns none.
        affine: whether there are weight and bias; the threshold is there either way.
        device, dtype: of the parameters.

    Source: Singh and Krishnan 2020 (arXiv 1911.09737).

    >>> layer = FilterResponseNorm(4)
    >>> bool((layer(torch.randn(2, 4, 8, 8)) >= 0).all())
    True
    """

    activates = True

    threshold: nn.Parameter
    learned_eps: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        learned_eps: float | None = None,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device, dtype)
        if learned_eps is not None and not learned_eps > 0:
            raise ArgumentError(
                "learned_eps is where the learned part of eps starts, above 0, got "
                f"{learned_eps}. Use None for a layer that learns none."
            )
        self.threshold = self._parameter(0.0, device, dtype)
        self.learned_eps = None
        if learned_eps is not None:
            start = torch.full((1,), learned_eps, device=device, dtype=dtype)
            self.learned_eps = nn.Parameter(start)

    def _normalized(self, x: Tensor) -> Tensor:
        square = x.square()
        if self.learned_eps is None:
            check_positions(self, x, "Build it with learned_eps, such as 1e-4, for such input.")
            eps = self.eps
        else:
            eps = self.eps + self.learned_eps.to(x.dtype).abs()
        if x.dim() > 2:
            square = square.mean(over_positions(x), keepdim=True)
        y = self._scaled(x * (square + eps).rsqrt())
        return torch.maximum(y, per_channel(self.threshold, y))

    def extra_repr(self) -> str:
        """The settings, as ``print(model)`` shows them."""
        return f"{super().extra_repr()}, learned_eps={self.learned_eps is not None}"
