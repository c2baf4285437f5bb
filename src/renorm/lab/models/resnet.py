"""Residual nets for small images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from renorm.lab.models.layers import convolution, he_normal


def projection(inside: int, outside: int, stride: int) -> nn.Module:
    """A 1 x 1 convolution with batch norm, option B of the paper."""
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))


class Block(nn.Module):
    """Two 3 x 3 convolutions, each with batch norm, around a shortcut.

    Args:
        inside, outside: channels of the input and of the output.
        stride: of the first convolution.
        shortcut: (inside, outside, stride) -> what stands there if the shape changes.
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        stride: int,
        shortcut: Callable[[int, int, int], nn.Module] = projection,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.relu1 = nn.ReLU()  # a module: some normalizers take its place
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = shortcut(inside, outside, stride)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        y = self.relu1(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Padded(nn.Module):
    """Every ``stride``-th position, and channels of zeros for those that are missing: option A."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.missing = outside - inside
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """From (N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


class ResNet(nn.Module):
    """A 3 x 3 convolution, stages of blocks, the mean over positions, one layer.

    Each stage but the first halves the resolution.

    Args:
        classes: length of the output.
        channels: of the input image.
        widths: channels of the stages.
        blocks: of a stage.
        shortcut: as in ``Block``.
        stride: of the first convolution.

    Source: He, Zhang, Ren and Sun 2016 (arXiv 1512.03385).
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        widths: Sequence[int],
        blocks: int,
        shortcut: Callable[[int, int, int], nn.Module],
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = convolution(channels, widths[0], stride)
        inside, layers = widths[0], []
        for stage, width in enumerate(widths):
            for block in range(blocks):
                step = 2 if stage and not block else 1
                layers.append(Block(inside, width, step, shortcut))
                inside = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inside, classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of ``images`` (N, channels, H, W)."""
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class ResNet20(ResNet):
    """The paper's net for CIFAR with n = 3: 16, 32 and 64 channels, shortcuts without weights.

    Args:
        classes: length of the output.
        channels: of the input image.

    Source: He et al. 2016, section 4.2.
    """

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__(classes, channels, (16, 32, 64), 3, Padded)


class ResNet8(ResNet):
    """One block a stage of 16, 32 and 64 channels, begun at a quarter of the resolution.

    Args:
        classes: length of the output.
        channels: of the input image.

    Source: He et al. 2016, section 4.2 with n = 1, behind the stem of their table 1.
    """

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__(classes, channels, (16, 32, 64), 1, projection, stride=2)
        self.stem.append(nn.MaxPool2d(3, stride=2, padding=1))


class ResNet14(ResNet):
    """Two blocks a stage of 16, 32 and 64 channels, begun at half the resolution: made for speed.

    Args:
        classes: length of the output.
        channels: of the input image.
    """

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__(classes, channels, (16, 32, 64), 2, projection, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of ``images`` (N, channels, H, W)."""
        # a seventh faster on a CPU, where convolutions pass the format on
        return super().forward(images.contiguous(memory_format=torch.channels_last))


class ResNet18(ResNet):
    """The paper's 18 layers of 64 to 512 channels, begun by 3 x 3 instead of 7 x 7 and pooling.

    Args:
        classes: length of the output.
        channels: of the input image.

    Source: He et al. 2016, table 1.
    """

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__(classes, channels, (64, 128, 256, 512), 2, projection)
