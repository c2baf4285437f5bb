"""Nets by name."""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from renorm.errors import ArgumentError
from renorm.lab.models.convnet import ConvNet
from renorm.lab.models.deep import DeepNet
from renorm.lab.models.mlp import SigmoidMLP
from renorm.lab.models.resnet import ResNet8, ResNet14, ResNet18, ResNet20
from renorm.lab.models.unet import UNet
from renorm.lab.models.vgg import STAGES_A, VGG
from renorm.names import check_options, known, parsed, with_options


@dataclass(frozen=True)
class Model:
    """A net by name.

    Args:
        name: as it is given on the command line and stored in records.
        about: one line for the help.
        make: (shape of an input without the batch, classes, **options) -> net.
        least: height and width that an image must have; None for a net that flattens its inputs,
            whatever their shape.
    """

    name: str
    about: str
    make: Callable[..., nn.Module]
    least: int | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options it may be given."""
        return tuple(inspect.signature(self.make).parameters)[2:]

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A new net, its weights drawn from torch's generator.

        Args:
            shape: of an input without the batch: (C, H, W) of an image.
            classes: length of the output, be it scores of classes or an embedding.

        Raises:
            ArgumentError: the net does not take inputs of this shape.
        """
        least = self.least
        if least is not None and (len(shape) != 3 or min(shape[1:]) < least):
            raise ArgumentError(
                f"The net {self.name!r} takes images (C, H, W) of at least {least} x {least}, got "
                f"inputs of the shape {shape}. Choose another net, such as {FITS_ALL!r}."
            )
        return self.make(shape, classes)


def _deep(residual: bool) -> Callable[..., nn.Module]:
    def make(
        shape: tuple[int, ...], classes: int, depth: int = 10, width: int = 32, stages: int = 1
    ) -> nn.Module:
        return DeepNet(shape, classes, depth=depth, width=width, residual=residual, stages=stages)

    return make


FITS_ALL = "mlp"
MODELS = {
    entry.name: entry
    for entry in (
        Model(
            "convnet",
            "three convolutions of 16, 32 and 64 channels",
            lambda shape, classes: ConvNet(classes, shape[0]),
            least=4,
        ),
        Model(
            FITS_ALL,
            "three layers of 100 sigmoids, as in the batch norm paper",
            lambda shape, classes: SigmoidMLP(classes, math.prod(shape)),
        ),
        Model(
            "vgg",
            "plain: six convolutions of 32 to 128 channels, pooled twice",
            lambda shape, classes: VGG(classes, shape[0]),
            least=4,
        ),
        Model(
            "vgg_a",
            "plain and deeper: eight convolutions of 16 to 128 channels, pooled four times",
            lambda shape, classes: VGG(classes, shape[0], STAGES_A, round_up=True),
            least=4,
        ),
        Model(
            "resnet20",
            "He et al.'s residual net for CIFAR, 0.27 M parameters",
            lambda shape, classes: ResNet20(classes, shape[0]),
            least=4,
        ),
        Model(
            "resnet8",
            "the smallest of them, one block a stage, at a quarter of the resolution",
            lambda shape, classes: ResNet8(classes, shape[0]),
            least=8,
        ),
        Model(
            "resnet14",
            "a residual net like it of two blocks a stage, at half the resolution",
            lambda shape, classes: ResNet14(classes, shape[0]),
            least=8,
        ),
        Model(
            "resnet18",
            "the residual net of 64 to 512 channels, with a 3 x 3 stem, 11 M parameters",
            lambda shape, classes: ResNet18(classes, shape[0]),
            least=8,
        ),
        Model(
            "unet",
            "U-Net of 16, 32 and 64 channels; maps of half the resolution",
            lambda shape, classes: UNet(classes, shape[0]),
            least=8,
        ),
        Model(
            "plain",
            "equal layers, as many as asked for: plain(depth=20, width=32, stages=3)",
            _deep(residual=False),
        ),
        Model(
            "residual",
            "equal residual blocks, as many as asked for: residual(depth=8, width=32, stages=2)",
            _deep(residual=True),
        ),
    )
}


def find(name: str) -> Model:
    """The net of a name, which may have options, such as ``plain(depth=20, width=64)``.

    Raises:
        ArgumentError: there is no such net or option, or the text is no such name.

    >>> find("plain( width = 64 )").name
    'plain(width=64)'
    """
    base, options = parsed("net", name)
    (base,) = known("model", [base], MODELS)
    entry = MODELS[base]
    check_options("net", base, options, entry.options)
    if not options:
        return entry
    return replace(entry, name=with_options(base, options), make=partial(entry.make, **options))


def named(name: str, among: Iterable[str]) -> str:
    """The name of a net of a task, as records have it.

    Args:
        name: as in ``find``.
        among: names of the nets the task can train, which may be its own.

    Raises:
        ArgumentError: as ``find``.
    """
    base, options = parsed("net", name)
    (base,) = known("model", [base], dict.fromkeys(among))
    check_options("net", base, options, MODELS[base].options if base in MODELS else ())
    return with_options(base, options)
