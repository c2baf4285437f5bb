"""Plain convolutional nets."""

from collections.abc import Sequence

from torch import Tensor, nn

from renorm.lab.models.layers import convolution, he_normal

STAGES = ((32, 32), (64, 64), (128, 128))
STAGES_A = ((16,), (32,), (64, 64), (128, 128), (128, 128))


class VGG(nn.Module):
    """Stages of convolutions, pooled in between, the mean over positions, one layer.

    Args:
        classes: length of the output.
        channels: of the input image.
        stages: channels of the convolutions of each stage.
        round_up: whether half of an odd size is rounded up, so that a net of many stages takes
            small images, too.

    Source: after Simonyan and Zisserman 2015 (arXiv 1409.1556), with norms and much smaller.
    """

    def __init__(
        self,
        classes: int,
        channels: int = 3,
        stages: Sequence[Sequence[int]] = STAGES,
        round_up: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = channels
        for stage, widths in enumerate(stages):
            layers += [nn.MaxPool2d(2, ceil_mode=round_up)] if stage else []
            for width in widths:
                layers.append(convolution(inside, width))
                inside = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inside, classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of ``images`` (N, channels, H, W)."""
        return self.head(self.features(images).mean((2, 3)))
