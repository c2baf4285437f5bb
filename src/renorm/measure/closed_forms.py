"""What is known of deep nets at initialization, without torch: predictions beside measurements.

All are for weights drawn independently from N(0, 2 / n), n inputs each (He et al. 2015, arXiv
1502.01852), ReLU, no bias, in the limit of wide layers. Mean squares are over the weights too.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from renorm.errors import ArgumentError


def variance_before_norm(group_size: float = 1) -> float:
    """Variance of what a normalizer divides by, from the second layer on: ``1 - 1 / (pi G)``.

    ReLU makes of standard Gaussian values some of mean ``1 / sqrt(2 pi)`` and mean square 1/2.
    The next weights double mean squares, so the values before the normalizer have mean square 1,
    and of it ``1 / pi`` is the square of a channel's mean. With G channels sharing statistics the
    mean is over them all, and its square is G times less.

    Args:
        group_size: channels G that share statistics, from 1 on: 1 for batch and instance norm,
            infinity for layer norm. Above 1 the layer has to be convolutional, with many
            positions that are not correlated.

    Source: G = 1 is by Luther, "Why batch norm causes exploding gradients" (kyleluther.github.io);
    the interpolation in G is derived as above, and no claim of a paper.

    >>> round(variance_before_norm(), 3), variance_before_norm(math.inf)
    (0.682, 1.0)
    """
    if not group_size >= 1:
        raise ArgumentError(f"group_size is a number from 1 on, got {group_size!r}.")
    return 1 - 1 / (math.pi * group_size)


def gradient_growth(group_size: float = 1, depth: int = 1) -> float:
    """Growth of the squared gradient backward through layers: ``(1 - 1 / (pi G)) ** -depth``.

    Weights and ReLU keep mean squares of gradients, and a normalizer divides them by the variance
    before it. What its backward pass projects out of them is small for many values.

    Args:
        group_size: as in ``variance_before_norm``: 1 gives ``pi / (pi - 1)`` a layer.
        depth: layers of weights with a normalizer and a ReLU, from 0 on.

    Source: as in ``variance_before_norm``.

    >>> round(gradient_growth(), 3), round(gradient_growth(8), 3), gradient_growth(math.inf)
    (1.467, 1.041, 1.0)
    >>> round(gradient_growth(depth=20)), round(gradient_growth(2, depth=20))
    (2129, 32)
    """
    return variance_before_norm(group_size) ** -_whole("depth", depth)


def relu_correlation(correlation: ArrayLike) -> NDArray[np.float64]:
    """Cosine of two examples after ReLU: ``(sqrt(1 - c^2) + c (pi - arccos c)) / pi``.

    It holds for layer norm, and without a normalizer: both keep the angle between examples from
    the one activation to the next layer. 1 is its only fixed point, so with depth the examples
    become indistinguishable.

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


def correlation_by_depth(correlation: float, depth: int) -> NDArray[np.float64]:
    """Cosine of two examples after each of ``depth`` ReLUs: ``relu_correlation`` iterated.

    Args:
        correlation: of the two before the first ReLU.
        depth: L, from 0 on.

    Returns:
        (L,).

    >>> correlation_by_depth(0, 4).round(3).tolist()
    [0.318, 0.494, 0.605, 0.681]
    """
    found = np.empty(_whole("depth", depth))
    for layer in range(depth):
        found[layer] = correlation = float(relu_correlation(correlation))
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


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ArgumentError(f"{name} is a whole number from 0 on, got {value!r}.")
    return value
