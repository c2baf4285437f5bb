"""Models and batches that surveys are made of."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from renorm import BatchRenorm1d, BatchRenorm2d, limits


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's and detectron2's: all four vectors are buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            self.register_buffer(name, torch.full((channels,), value))
        for name, value in (("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self
        shape = (1, -1, 1, 1)
        scale = own.weight * (own.running_var + self.eps).rsqrt()
        return x * scale.view(shape) + (own.bias - own.running_mean * scale).view(shape)


def images(count: int, size: int = 6, *, seed: int = 1) -> list[Tensor]:
    """Batches (N, 3, 8, 8) in float64 whose statistics are not those of a fresh layer."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, 3, 8, 8)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1 for _ in range(count)
    ]


def rows(count: int, size: int = 8, width: int = 3, *, seed: int = 1) -> list[Tensor]:
    """Batches (N, width) in float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, width)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1 for _ in range(count)
    ]


def mixed() -> Any:
    """Images through a layer of each kind, in float64, with dropout and statistics off target."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 4, 3, bias=False),
        BatchRenorm2d(4, limits=limits.fixed(1.5, 0.3), microbatch=2),
        FrozenBatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5, affine=False),
        BatchRenorm1d(5, limits=limits.fixed(3, 5)),
        nn.Linear(5, 2),
    ).double()
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            nn.init.uniform_(module.get_buffer("running_mean"), -1, 1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    return model


def as_array(batches: list[Tensor]) -> np.ndarray:
    """(B, N, ...) of batches of one size."""
    return torch.stack(batches).numpy()
