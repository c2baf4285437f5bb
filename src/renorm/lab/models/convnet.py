"""The smallest convolutional net."""

from torch import Tensor, nn

WIDTHS = (16, 32, 64)


class ConvNet(nn.Module):
    """Three 3 x 3 convolutions, each with a norm and a ReLU, the mean over positions, one layer.

    The convolutions have no bias (the norm's shift stands for it) and 16, 32 and 64 channels;
    the second and third halve the resolution.

    Args:
        classes: length of the output.
        channels: of the input image.
    """

    def __init__(self, classes: int, channels: int = 1) -> None:
        super().__init__()
        inputs = (channels, *WIDTHS[:-1])
        convolutions = [
            nn.Conv2d(source, width, 3, stride=2 if layer else 1, padding=1, bias=False)
            for layer, (source, width) in enumerate(zip(inputs, WIDTHS, strict=True))
        ]
        head = nn.Linear(WIDTHS[-1], classes)
        layers: list[nn.Module] = []
        for convolution, width in zip(convolutions, WIDTHS, strict=True):
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of ``images`` (N, channels, H, W)."""
        return self.head(self.features(images).mean((2, 3)))
