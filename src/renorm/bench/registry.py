"""What is measured: every suite with its shapes and its target, in one table."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["training", "inference", "memory", "peers", "model"]

_FEATURE_MAPS = (
    (2, 64, 112, 112),
    (8, 64, 56, 56),
    (32, 64, 56, 56),
    (2, 256, 56, 56),
    (16, 128, 28, 28),
    (64, 128, 28, 28),
    (4, 512, 28, 28),
    (32, 256, 14, 14),
    (2, 1024, 14, 14),
    (16, 512, 7, 7),
    (8, 2048, 7, 7),
    (64, 512, 7, 7),
)
# a high, a middle and a low resolution
_FEW = (1, 4, 9)
_RESNET = tuple(
    (batch, channels, side, side)
    for channels, side in ((64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7))
    for batch in (32, 256)
)
_ROWS = ((32, 16), (256, 64), (256, 256), (256, 2048))
_VOLUMES = ((2, 32, 32, 64, 64), (2, 16, 64, 128, 128))


@dataclass(frozen=True)
class Shape:
    """One kind of input to one layer, and where it comes from.

    Args:
        suite: name of the suite it belongs to.
        sizes: (N, C, *spatial).
        layout: "contiguous" or "channels_last".
        dtype: of the input, by torch's name; parameters and statistics are float32.
        device: "cpu" or "cuda".
        relu: whether a ReLU follows the normalization.
        target: for the ratio of this shape alone, where the suite has one a shape.
    """

    suite: str
    sizes: tuple[int, ...]
    layout: str = "contiguous"
    dtype: str = "float32"
    device: str = "cpu"
    relu: bool = False
    target: float | None = None

    @property
    def name(self) -> str:
        """The sizes as people write them."""
        return "x".join(map(str, self.sizes))

    @property
    def input_bytes(self) -> int:
        """Size of the input."""
        return math.prod(self.sizes) * getattr(torch, self.dtype).itemsize

    @property
    def large(self) -> bool:
        """Whether x and dy fit into no cache of today, so that every pass over them is traffic."""
        return self.input_bytes >= 2**27

    def least_bytes(self, direction: str) -> int:
        """What has to move at least: x and y forward; x, dy and dx backward."""
        tensors = {"forward": 2, "backward": 3, "both": 5}[direction]
        return tensors * self.input_bytes

    def two_pass_bytes(self, direction: str) -> int:
        """What moves if statistics and output each read x, and backward dy, from memory.

        So they must where no cache holds a channel.
        """
        tensors = {"forward": 3, "backward": 5, "both": 8}[direction]
        return tensors * self.input_bytes

    def tensor(self, seed: int) -> Tensor:
        """Noise of this shape, every channel with a mean and a deviation of its own."""
        generator = torch.Generator(self.device).manual_seed(seed)
        drawn = {"generator": generator, "device": self.device}
        channels = (1, self.sizes[1], *[1] * (len(self.sizes) - 2))
        spread = torch.rand(channels, **drawn) + 0.5
        x = torch.randn(self.sizes, **drawn).mul_(spread)
        x += torch.randn(channels, **drawn)
        x = x.to(getattr(torch, self.dtype))
        if self.layout == "contiguous":
            return x
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats[len(self.sizes)])


@dataclass(frozen=True)
class Target:
    """What the ratios of a suite should be; None is no target.

    Args:
        mean: of the geometric mean over the shapes.
        worst: of the worst shape.
        copied: least share of the copy bandwidth on large tensors.
        at_least: whether ratios should be above the target: others over ours.
    """

    mean: float | None = None
    worst: float | None = None
    copied: float | None = None
    at_least: bool = False


@dataclass(frozen=True)
class Suite:
    """Shapes that are judged together.

    Args:
        name: as ``--suite`` takes it.
        about: one line, shown above the table.
        kind: what is done with each shape.
        shapes: all of them.
        short: positions of those that a short run measures.
        target: for the whole suite.
    """

    name: str
    about: str
    kind: Kind
    shapes: tuple[Shape, ...]
    short: tuple[int, ...]
    target: Target = Target()

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.shapes[0].device

    def chosen(self, full: bool) -> tuple[Shape, ...]:
        """The shapes of a full or of a short run."""
        return self.shapes if full else tuple(self.shapes[i] for i in self.short)


def _suite(
    name: str,
    about: str,
    sizes: tuple[tuple[int, ...], ...],
    target: Target = Target(),
    *,
    kind: Kind = "training",
    short: tuple[int, ...] = _FEW,
    targets: tuple[float, ...] | None = None,
    layout: str = "contiguous",
    dtype: str = "float32",
    device: str = "cpu",
    relu: bool = False,
) -> Suite:
    each = targets or (None,) * len(sizes)
    shapes = tuple(
        Shape(name, size, layout, dtype, device, relu, goal)
        for size, goal in zip(sizes, each, strict=True)
    )
    return Suite(name, about, kind, shapes, short, target)


_CPU = (
    _suite("nchw", "feature maps, float32, contiguous", _FEATURE_MAPS, Target(0.45, 0.9)),
    _suite("channels_last", "feature maps, float32, channels last", _FEATURE_MAPS,
           Target(0.8, 1.05), layout="channels_last"),
    _suite("rows", "rows of features, float32", _ROWS, short=(0, 2, 3),
           targets=(1.5, 1.5, 1.0, 1.0)),
    _suite("volumes", "volumes, float32", _VOLUMES, Target(0.6), short=(0,)),
    _suite("bfloat16", "feature maps, bfloat16, contiguous, float32 parameters", _FEATURE_MAPS,
           Target(0.6), dtype="bfloat16"),
    _suite("relu", "feature maps, float32, with the ReLU that follows", _FEATURE_MAPS,
           Target(0.45), relu=True),
    _suite("eval", "feature maps in eval mode, forward without gradients", _FEATURE_MAPS,
           Target(1.0), kind="inference"),
    _suite("memory", "input-sized tensors that a forward keeps for backward", _FEATURE_MAPS[3:5],
           Target(worst=1.0), kind="memory", short=(0,)),
    _suite("memory_relu", "the same with the ReLU that follows", _FEATURE_MAPS[3:5],
           Target(worst=1.0), kind="memory", short=(0,), relu=True),
    _suite("resnet18", "training step of ResNet-18 on 8 images of 96x96", ((8, 3, 96, 96),),
           kind="model", short=(0,)),
    _suite("peers", "other implementations on feature maps, as a ratio to ours", _FEATURE_MAPS,
           Target(8.0, at_least=True), kind="peers", short=(4, 9)),
    _suite("peers_rows", "other implementations on rows, as a ratio to ours", _ROWS,
           kind="peers", short=(2,)),
)  # fmt: skip


def _on_gpu(layout: str, dtype: str, relu: bool) -> Suite:
    order = {"contiguous": "nchw", "channels_last": "nhwc"}[layout]
    return _suite(
        f"gpu_{'relu_' if relu else ''}{order}_{dtype}",
        f"ResNet's feature maps, {dtype}, {order.upper()}"
        + (", with the ReLU that follows" if relu else ""),
        _RESNET,
        Target(0.7 if relu else 1.0, copied=0.8),
        short=(0, 5, 8),
        layout=layout,
        dtype=dtype,
        device="cuda",
        relu=relu,
    )


_GPU = tuple(
    _on_gpu(layout, dtype, relu)
    for relu in (False, True)
    for dtype in ("bfloat16", "float32")
    for layout in ("channels_last", "contiguous")
)

SUITES = {suite.name: suite for suite in (*_CPU, *_GPU)}
