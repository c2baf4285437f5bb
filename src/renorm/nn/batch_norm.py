"""torch's batch norm as a base class, the same in every torch that is supported."""

from typing import Any

import torch
from torch.nn import init
from torch.nn.modules.batchnorm import _BatchNorm


class BatchNormBase(_BatchNorm):
    """torch's own, with ``bias=False``, which not every torch has; arguments are torch's."""

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        bias: bool,
    ) -> None:
        momentum_: Any = momentum  # None is allowed; the annotation of some torch forgets it
        super().__init__(num_features, eps, momentum_, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Set the statistics to (0, 1), weights to 1 and biases to 0."""
        self.reset_running_stats()
        if self.affine:
            init.ones_(self.weight)
            if self.bias is not None:
                init.zeros_(self.bias)
