"""A layer of weights with a normalizer and an activation."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from renorm.errors import ArgumentError
from renorm.nn.cross_iteration import CrossIterationBatchNorm
from renorm.nn.normalizers.factory import find, normalizer
from renorm.nn.normalizers.weights import WeightBased


def block(
    source: nn.Module,
    name: str,
    *,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
    **options: Any,
) -> nn.Sequential:
    """The source, a normalizer, paired with it if it must be, and an activation.

    Args:
        source: nn.Linear or a convolution; the normalizer takes over its channels, its number of
            spatial dimensions, device and dtype.
        name: of the normalizer, as ``renorm.normalizer`` takes it.
        activation: makes what follows, unless the normalizer contains the nonlinearity; None for
            nothing.
        **options: of the normalizer.

    Raises:
        ArgumentError: another source, or as ``renorm.normalizer`` and the pairing have it.

    >>> [type(layer).__name__ for layer in block(nn.Conv2d(3, 8, 3), "group_norm", groups=4)]
    ['Conv2d', 'GroupNorm', 'ReLU']
    >>> len(block(nn.Linear(3, 8), "weight_norm"))
    2
    """
    if not isinstance(source, nn.Linear | _ConvNd):
        raise ArgumentError(
            f"source is an nn.Linear or a convolution, got {type(source).__name__}. Take "
            "renorm.normalizer(name, channels) after other layers."
        )
    linear = isinstance(source, nn.Linear)
    channels = source.out_features if linear else source.out_channels
    layer = normalizer(name, channels, dims=0 if linear else len(source.kernel_size), **options)
    layer.to(source.weight.device, source.weight.dtype)
    pair(layer, source)
    layers = [source, layer]
    if activation is not None and not find(name).activates:
        layers.append(activation())
    return nn.Sequential(*layers)


def pair(layer: nn.Module, source: Any) -> None:
    """Tell the layer what comes before it, if it needs to know; other layers are left alone.

    Raises:
        ArgumentError: the layer cannot be paired with this source.
    """
    if isinstance(layer, WeightBased):
        layer.pair(source)
    elif isinstance(layer, CrossIterationBatchNorm) and _compensates(layer):
        layer.attach(source)


def _compensates(layer: CrossIterationBatchNorm) -> bool:
    """Whether the layer brings earlier statistics to the weights of its source."""
    return layer.window > 1 and layer.compensation != "none"
