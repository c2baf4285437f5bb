"""Linear layers and convolutions as one product, ``y = p W^T + b``, of input patches.

Patches p are (G, m, K): G groups, m positions (examples times output positions), K values that a
filter sees there. Weights W are (C, K), the layer's own with all but the first axis flattened;
channels 0 to C/G - 1 belong to the first group, and so on. Outputs y are (m, C), as ``as_rows``
has them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from renorm.reference.shapes import Array

Sizes = int | Sequence[int]


def as_patches(
    maps: Array,
    kernel: Sequence[int],
    *,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """What each filter sees of (N, C, *spatial), zeros beyond the borders: (G, m, K).

    Args:
        kernel: its size in each spatial dimension; empty for a linear layer, (N, C).
        stride, padding, dilation: as of a convolution; one number stands for all dimensions.
        groups: G.
    """
    n, channels, *spatial = maps.shape
    d = len(spatial)
    steps, pads, gaps = (_each(v, d) for v in (stride, padding, dilation))
    padded = np.pad(maps, [(0, 0), (0, 0), *((p, p) for p in pads)])
    extents = tuple((k - 1) * gap + 1 for k, gap in zip(kernel, gaps, strict=True))
    seen = sliding_window_view(padded, extents, axis=tuple(range(2, 2 + d)))
    seen = seen[(..., *(slice(None, None, s) for s in (*steps, *gaps)))]
    out = seen.shape[2 : 2 + d]
    grouped = seen.reshape(n, groups, channels // groups, *out, *kernel)
    return np.moveaxis(grouped, (1, 2), (0, 2 + d)).reshape(groups, n * int(np.prod(out)), -1)


def linear(patches: Array, weight: Array, bias: Array | None = None) -> Array:
    """``y = p W^T + b``: (m, C)."""
    filters = weight.reshape(len(patches), -1, patches.shape[2])
    y = np.moveaxis(patches @ filters.swapaxes(1, 2), 0, 1).reshape(patches.shape[1], -1)
    return y if bias is None else y + bias


def linear_backward(dy: Array, patches: Array, weight: Array) -> tuple[Array, Array, Array]:
    """``dp = dy W``, ``dW = dy^T p`` and ``db = sum(dy)``, group by group.

    Returns:
        ``(dp, dW, db)``.
    """
    G, m, K = patches.shape
    filters = weight.reshape(G, -1, K)
    dy_of_group = np.moveaxis(dy.reshape(m, G, -1), 1, 0)
    dweight = (dy_of_group.swapaxes(1, 2) @ patches).reshape(weight.shape)
    return dy_of_group @ filters, dweight, dy.sum(axis=0)


def _each(value: Sizes, dimensions: int) -> tuple[int, ...]:
    return (value,) * dimensions if isinstance(value, int) else tuple(value)
