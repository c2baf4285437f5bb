"""The nets that have no place in the lab."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Plain(nn.Module):
    """3 x 3 convolutions, each with a norm and a ReLU, the mean over positions, one layer.

    A convolution that widens halves the resolution.

    Args:
        classes: length of the output.
        channels: of the image.
        widths: of the convolutions.
        bias: whether the convolutions have one.
        grouped: whether they are depthwise ones in 4 groups, followed by one of 1 x 1.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        widths: Sequence[int],
        bias: bool = False,
        grouped: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = channels
        for width in widths:
            stride = 2 if layers and width > inside else 1
            if grouped and layers:
                layers += [*_depthwise(inside, stride), *_grouped(inside, width)]
            else:
                layers += _convolution(inside, width, stride, bias)
            inside = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inside, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, channels, H, W)."""
        return self.head(self.features(images).mean((2, 3)))


def _convolution(inside: int, outside: int, stride: int, bias: bool) -> list[nn.Module]:
    convolution = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=bias)
    return [convolution, nn.BatchNorm2d(outside), nn.ReLU()]


def _depthwise(width: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]


def _grouped(inside: int, outside: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inside, outside, 1, groups=4, bias=False)
    return [convolution, nn.BatchNorm2d(outside), nn.ReLU()]


class Pooled(nn.Module):
    """A plain net whose features meet those of the whole image, as the pooling branch of DeepLab.

    The branch has a norm on maps of 1 x 1, so of one value an example.

    Args:
        plain: the net; its head is replaced.
        width: of its last convolution.

    Source: Chen, Papandreou, Schroff and Adam 2017 (arXiv 1706.05587), section 3.3.
    """

    def __init__(self, plain: Plain) -> None:
        super().__init__()
        width = plain.head.in_features
        self.features = plain.features
        self.branch = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * width, plain.head.out_features)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, classes)."""
        maps = self.features(images)
        return self.head(torch.cat([maps.mean((2, 3)), self.branch(maps).flatten(1)], 1))


class Projected(nn.Module):
    """Embeddings of both views of each image, as contrastive learning has them.

    Args:
        plain: the net; its head is replaced by a projection.
        width: of the embeddings.

    Source: Chen, Fan, Girshick and He 2020 (arXiv 2003.04297), for the projection.
    """

    def __init__(self, plain: Plain, width: int = 32) -> None:
        super().__init__()
        inside = plain.head.in_features
        self.features = plain.features
        self.projection = nn.Sequential(
            nn.Linear(inside, inside), nn.ReLU(), nn.Linear(inside, width)
        )

    def forward(self, views: Tensor) -> Tensor:
        """Unit vectors (N, 2, width) of views (N, 2, channels, H, W)."""
        maps = self.features(views.flatten(0, 1))
        found = F.normalize(self.projection(maps.mean((2, 3))))
        return found.unflatten(0, views.shape[:2])


class Apart(nn.Module):
    """Embeddings of two views of each image, of which no two are in one group of statistics.

    All first views come first, and then all second ones.

    Args:
        projected: the net, with statistics of small groups.
    """

    def __init__(self, projected: nn.Module) -> None:
        super().__init__()
        self.projected = projected

    def forward(self, views: Tensor) -> Tensor:
        """Unit vectors (N, 2, width) of views (N, 2, channels, H, W)."""
        in_turn = views.transpose(0, 1).flatten(0, 1)
        found = self.projected(in_turn[:, None])
        return found.unflatten(0, (2, -1))[:, :, 0].transpose(0, 1)


class Rows(nn.Module):
    """A net for rows of a table, or flattened images, with a norm on what comes in.

    Args:
        classes: length of the output.
        features: of a row.
        hidden: layers.
        norms: whether these have one each.
    """

    def __init__(self, classes: int, features: int, hidden: int = 2, norms: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten(), nn.BatchNorm1d(features)]
        for _ in range(hidden):
            norm = [nn.BatchNorm1d(64)] if norms else []
            layers += [nn.Linear(features, 64, bias=not norms), *norm, nn.ReLU()]
            features = 64
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(features, classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Class scores (N, classes)."""
        return self.head(self.hidden(rows))
