"""Feature maps as rows of values, and back."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def as_rows(maps: Array) -> Array:
    """(N, C, *spatial) as (m, C), with m = N * positions."""
    return np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1])


def as_maps(rows: Array, shape: tuple[int, ...]) -> Array:
    """(m, C) as (N, C, *spatial) of the given shape; undoes ``as_rows``."""
    n, channels, *spatial = shape
    return np.moveaxis(rows.reshape(n, *spatial, channels), -1, 1)
