"""Nets of any depth and width, plain or residual, that are made of equal layers."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.nn.normalizers.blocks import block

MOST_LAYERS = 10_000
MOST_WEIGHTS = 10**9  # 4 GB of float32


class DeepNet(nn.Module):
    """Layers of weights, each with a normalizer and a ReLU, the mean over positions, one layer.

    Convolutions are 3 x 3, for images; other inputs get fully connected layers. Each stage but the
    first begins with a stride of 2 and has twice the channels of the one before. Weights are drawn
    from N(0, 2 / n), n inputs each, and there are no biases but the normalizers'.

    A residual net has a layer of weights with a normalizer, and then blocks that add to the stream
    what two layers make of it, the second without a ReLU; one follows the last block. The first
    layer of a block takes what is not rectified, so its weights are drawn from N(0, 1 / n), and
    without a normalizer a branch gives as much as it takes.

    Args:
        shape: of an input without the batch: (C, H, W) of an image, or any other.
        outputs: length of the output.
        depth: hidden layers of weights; of a residual net, blocks. At least 1.
        width: channels of the first stage, at least 1.
        normalizer, options: as ``renorm.normalizer`` takes them.
        residual: whether there are skips.
        stages: at least 1, at most the depth; 1 for what is not an image.

    Raises:
        ArgumentError: a number out of these ranges, more stages than the image can be halved for,
            a net too large to be built, or a normalizer that does not fit the channels.

    Source: the nets of Lubana et al. 2021 (arXiv 2106.05956) and, with residuals, of De and Smith
    2020 (arXiv 2002.10444), made of equal layers.

    >>> net = DeepNet((3, 8, 8), 10, depth=4, width=8, normalizer="layer_norm", stages=2)
    >>> [tuple(p.shape) for p in net.parameters() if p.dim() == 4]
    [(8, 3, 3, 3), (8, 8, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3)]
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        *,
        depth: int,
        width: int,
        normalizer: str = "batch_norm",
        options: Mapping[str, Any] | None = None,
        residual: bool = False,
        stages: int = 1,
    ) -> None:
        super().__init__()
        _check(shape, depth, width, stages)
        self._block = lambda source, activation: block(
            source, normalizer, activation=activation, **(options or {})
        )
        self._images = len(shape) == 3
        inside = shape[0] if self._images else math.prod(shape)
        layers: list[nn.Module] = [] if self._images else [nn.Flatten()]
        if residual:
            layers.append(self._layer(inside, width, 1, gain=1, activation=None))
            inside = width
        for layer in range(depth):
            stage, begun = divmod(layer * stages, depth)
            outside, stride = width << stage, 2 if stage and begun < stages else 1
            made = self._residual if residual else self._layer
            layers.append(made(inside, outside, stride))
            inside = outside
        self.features = nn.Sequential(*layers, *([nn.ReLU()] if residual else []))
        self.head = nn.Linear(inside, outputs)
        del self._block

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, outputs) of ``x`` (N, *shape)."""
        features = self.features(x)
        return self.head(features.mean((2, 3)) if self._images else features)

    def _layer(
        self,
        inside: int,
        outside: int,
        stride: int,
        gain: float = 2,
        activation: Callable[[], nn.Module] | None = nn.ReLU,
    ) -> nn.Sequential:
        """Weights from N(0, gain / n), a normalizer, an activation."""
        weights: nn.Module
        if self._images:
            weights = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        else:
            weights = nn.Linear(inside, outside, bias=False)
        nn.init.normal_(weights.weight, std=math.sqrt(gain / weights.weight[0].numel()))
        return self._block(weights, activation)

    def _residual(self, inside: int, outside: int, stride: int) -> "Branch":
        layers = nn.Sequential(
            self._layer(inside, outside, stride, gain=1),
            self._layer(outside, outside, 1, activation=None),
        )
        return Branch(layers, stride, outside - inside)


class Branch(nn.Module):
    """A skip, and what layers add to it; missing channels of the skip are zeros.

    Args:
        layers: the branch.
        stride: of the positions that the skip takes.
        missing: channels that the branch has more.
    """

    def __init__(self, layers: nn.Module, stride: int, missing: int) -> None:
        super().__init__()
        self.layers, self.stride, self.missing = layers, stride, missing

    def forward(self, x: Tensor) -> Tensor:
        """From (N, C, *spatial) to (N, C + missing, *spatial / stride)."""
        y = self.layers(x)
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.missing:
            x = nn.functional.pad(x, (*(0, 0) * (x.dim() - 2), 0, self.missing))
        return x + y


def _check(shape: tuple[int, ...], depth: Any, width: Any, stages: Any) -> None:
    for name, value, what in (
        ("depth", depth, "counts hidden layers, or residual blocks"),
        ("width", width, "counts the channels of the first layer"),
        ("stages", stages, "counts the parts of a net that have the same resolution"),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name} {what}, at least 1, got {value!r}.")
    most = depth
    if len(shape) != 3:
        most = 1
    elif shape[1] and shape[2]:
        most = min(depth, min(shape[1:]).bit_length())
    if stages > most:
        raise ArgumentError(
            f"A net of depth {depth} for inputs of the shape {shape} has at most {most} stages, "
            f"each of at least one layer and half the resolution of the one before, got {stages}. "
            "Give fewer stages."
        )
    if depth > MOST_LAYERS:
        raise ArgumentError(f"depth is at most {MOST_LAYERS:,}, got {depth:,}. Give a smaller one.")
    widths = [width << layer * stages // depth for layer in range(depth)]
    weights = sum(channels**2 for channels in widths) * (9 if len(shape) == 3 else 1)
    if weights > MOST_WEIGHTS:
        raise ArgumentError(
            f"A net of depth {depth:,}, width {width:,} and stages {stages} has about "
            f"{weights:.0e} weights, and at most {MOST_WEIGHTS:.0e} are built. Give a smaller "
            "width or depth."
        )
