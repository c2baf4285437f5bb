"""A net for maps: something about every position of an image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from renorm.lab.models.layers import convolution, he_normal

WIDTHS = (16, 32, 64)


class UNet(nn.Module):
    """Down to an eighth of the resolution and up again to a half, joined at each size on the way.

    The first convolution halves the resolution. Going down, a stage is a convolution of stride 2
    and one of stride 1, with 16, 32 and 64 channels; going up, the map is enlarged to the size of
    the one met on the way down, and a convolution takes both.

    Args:
        classes: maps in the output.
        channels: of the input image.

    Source: after Ronneberger, Fischer and Brox 2015 (arXiv 1505.04597), with norms and smaller.
    """

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        inputs = (channels, *WIDTHS[:-1])
        self.down = nn.ModuleList(
            nn.Sequential(convolution(inside, width, stride=2), convolution(width, width))
            for inside, width in zip(inputs, WIDTHS, strict=True)
        )
        self.up = nn.ModuleList(
            convolution(below + width, width)
            for below, width in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(WIDTHS[0], classes, 1)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, classes, H / 2, W / 2), rounded up, of ``images`` (N, channels, H, W)."""
        met = []
        for stage in self.down:
            images = stage(images)
            met.append(images)
        x = met.pop()
        for stage in self.up:
            beside = met.pop()
            enlarged = F.interpolate(x, beside.shape[2:])
            x = stage(torch.cat([enlarged, beside], 1))
        return self.head(x)
