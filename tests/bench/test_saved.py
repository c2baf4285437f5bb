import pytest
import torch
from torch import Tensor, nn

from renorm import BatchRenorm2d
from renorm.bench.saved import saved

X = torch.randn(4, 8, 6, 6)


class SavesAView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten() * x.flatten()


class SavesAMask(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.0)


@pytest.mark.parametrize(
    ("layer", "tensors"),
    [
        (nn.Identity(), 0),
        (nn.BatchNorm2d(8), 1),
        (nn.ReLU(), 1),
        (nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), 2),
        (SavesAView(), 1),  # twice the same storage
        (SavesAMask(), 1),  # a byte for each value
        (BatchRenorm2d(8), 1),
        (BatchRenorm2d(8, kernel="aten"), 1),
    ],
)
def test_input_sized_tensors_are_counted_once(layer: nn.Module, tensors: int) -> None:
    assert saved(layer, X).input_sized == tensors


def test_bytes_are_of_all_but_parameters() -> None:
    channels = 8 * 4
    size = X.numel() * 4
    assert size + channels <= saved(nn.BatchNorm2d(8), X).bytes <= size + 8 * channels
    wide = nn.Linear(6, 50)
    assert saved(wide, X).bytes == size
