"""What is known of deep nets at initialization, without torch: predictions beside measurements.

All are for weights drawn independently from N(0, 2 / n), n inputs each (He et al. 2015, arXiv
1502.01852), ReLU, no bias, in the limit of wide layers. Mean squares are over the weights too.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from renorm.errors import ArgumentError


def gradient_growth(group_size: float = 1) -> float:
    """Growth of the squared gradient backward through a layer: ``1 / (1 - 1 / (pi G))``.

    ReLU makes of standard Gaussian values some of mean ``1 / sqrt(2 pi)`` and mean square 1/2.
    The next weights double mean squares, so the values before the normalizer have mean square 1,
    and of it ``1 / pi`` is the square of a channel's mean. With G channels sharing statistics the
    mean is over them all, and its square is G times less. Weights and ReLU keep mean squares of
    gradients; the normalizer divides them by the variance, and what its backward pass projects out
    of them is small for many values.

    Args:
        group_size: channels G that share statistics, from 1 on: 1 for batch and instance norm,
            which gives ``pi / (pi - 1)``, infinity for layer norm. Above 1 the layer has to be
            convolutional, and the form holds where positions are not correlated before the ReLU:
            in the second layer. ``gradient_growth_by_depth`` has the others.

    Source: G = 1 is by Luther, "Why batch norm causes exploding gradients" (kyleluther.github.io);
    the interpolation in G is derived as above, and no claim of a paper.

    >>> [round(gradient_growth(group_size), 3) for group_size in (1, 2, 8, math.inf)]
    [1.467, 1.189, 1.041, 1.0]
    """
    return 1 / (1 - 1 / (math.pi * _size(group_size)))


def gradient_growth_by_depth(depth: int, group_size: float = 1) -> NDArray[np.float64]:
    """Growth of the squared gradient through the layers 2 to ``depth + 1``: ``1 / (1 - c_l / G)``.

    c_l is the correlation of two positions after l ReLUs, by ``correlation_by_depth``. Positions
    become alike, so groups of several channels have ever less variance and gradients grow more
    than ``gradient_growth`` says; with G = 1, where the normalizer undoes that, just as much.

    Args:
        depth: layers L with weights, a normalizer and a ReLU, from 0 on.
        group_size: as in ``gradient_growth``.

    Returns:
        (L,), the first of them ``gradient_growth(group_size)``.

    Source: derived as above, and no claim of a paper.

    >>> gradient_growth_by_depth(4, 2).round(3).tolist()
    [1.189, 1.265, 1.3, 1.318]
    """
    size = _size(group_size)
    return 1 / (1 - correlation_by_depth(0, depth, size) / size)


def relu_correlation(correlation: ArrayLike) -> NDArray[np.float64]:
    """Cosine of two examples after ReLU: ``(sqrt(1 - c^2) + c (pi - arccos c)) / pi``.

    Layer norm keeps the angle between examples from one activation to the next layer's, and so does
    a net without normalizers. 1 is the only fixed point, so with depth the examples become
    indistinguishable.

    Args:
        correlation: c of the two before ReLU, -1 to 1, of any shape.

    Source: Cho and Saul 2009, "Kernel methods for deep learning", degree 1.

    >>> relu_correlation([-1, 0, 1]).round(3).tolist()
    [0.0, 0.318, 1.0]
    """
    c = np.asarray(correlation, np.float64)
    if not (np.abs(c) <= 1).all():
        raise ArgumentError(f"A correlation lies between -1 and 1, got {correlation!r}.")
    return (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi


def correlation_by_depth(
    correlation: float, depth: int, group_size: float = math.inf
) -> NDArray[np.float64]:
    """Cosine after each of ``depth`` ReLUs: ``relu_correlation`` iterated.

    A normalizer of G channels takes the mean of its group away, which has the share c / G of the
    mean square, so that ``c (1 - 1 / G) / (1 - c / G)`` is left before the next ReLU: all of c in
    layer norm, nothing in batch and instance norm, whose fixed point is ``1 / pi``.

    Args:
        correlation: of two examples, or positions, before the first ReLU, -1 to 1.
        depth: L, from 0 on.
        group_size: G, from 1 on; infinity also for nets without normalizers. For finite ones the
            examples' own positions have to be as alike as those of different ones.

    Returns:
        (L,).

    Source: the map as in ``relu_correlation``; the part of G is derived as above, and no claim of a
    paper.

    >>> correlation_by_depth(0, 4).round(3).tolist()
    [0.318, 0.494, 0.605, 0.681]
    >>> correlation_by_depth(0, 4, 2).round(3).tolist()
    [0.318, 0.419, 0.462, 0.483]
    """
    size = _size(group_size)
    found = np.empty(_whole("depth", depth))
    c = float(correlation)
    for layer in range(depth):
        if layer:
            c = c * (1 - 1 / size) / (1 - c / size)
        found[layer] = c = float(relu_correlation(c))
    return found


def residual_mean_square(depth: int, *, normalized: bool) -> NDArray[np.float64]:
    """Mean square of a residual stream after each block, of inputs with mean square 1.

    A branch adds to the stream what is independent of it: without a normalizer as much as the
    stream has, which gives ``2 ** l`` after block l; with one 1, which gives ``l + 1``.

    Args:
        depth: blocks L, from 0 on.
        normalized: whether the branch begins, or ends, with a normalizer over examples.

    Returns:
        (L,).

    Source: De and Smith 2020 (arXiv 2002.10444), section 2.

    >>> residual_mean_square(4, normalized=False).tolist()
    [2.0, 4.0, 8.0, 16.0]
    >>> residual_mean_square(4, normalized=True).tolist()
    [2.0, 3.0, 4.0, 5.0]
    """
    blocks = np.arange(1, _whole("depth", depth) + 1, dtype=np.float64)
    return blocks + 1 if normalized else np.exp2(blocks)


def _size(group_size: Any) -> float:
    if isinstance(group_size, bool) or not group_size >= 1:
        raise ArgumentError(f"group_size is a number from 1 on, got {group_size!r}.")
    return group_size


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ArgumentError(f"{name} is a whole number from 0 on, got {value!r}.")
    return value
