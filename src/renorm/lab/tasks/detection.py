"""Detection by heat maps: objects are the peaks of a map for each class.

Source: Zhou, Wang and Krähenbühl 2019, Objects as Points (arXiv 1904.07850).
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from renorm.errors import MissingExtraError

SIGMA = 1.5  # of a peak, in cells of the map
THRESHOLD = 0.3


def heat_maps(objects: Tensor, classes: int, height: int, width: int) -> Tensor:
    """Maps (n, classes, height, width) with a Gaussian of height 1 around each object, float32.

    Where Gaussians meet, the larger counts.

    Args:
        objects: (n, m, 4): class, x, y and radius in cells of the map; class -1 for none.
        classes: how many there are.
        height: of a map.
        width: of a map.
    """
    kinds, x, y, _ = objects.unbind(-1)
    across = _bumps(x, width)  # (n, m, width)
    down = _bumps(y, height)
    peaks = down[..., None] * across[..., None, :]
    maps = [(peaks * (kinds == kind)[..., None, None]).amax(1) for kind in range(classes)]
    return torch.stack(maps, 1)


def _bumps(centres: Tensor, length: int) -> Tensor:
    cells = torch.arange(length)
    nearest = centres.floor().clamp(0, length - 1)[..., None]
    return torch.exp(-((cells - nearest) ** 2) / (2 * SIGMA**2))


def focal(logits: Tensor, maps: Tensor) -> Tensor:
    """The focal loss of maps, a scalar, per object.

    With p the sigmoid of a logit and t the target, a position where t is 1 adds
    -(1 - p)^2 log p, any other -(1 - t)^4 p^2 log(1 - p).

    Args:
        logits: (n, classes, H, W).
        maps: the same shape, 0 to 1.

    Source: Law and Deng 2018 (arXiv 1808.01244), equation 1.
    """
    peaks = maps == 1
    p = logits.sigmoid()
    at_peaks = (1 - p) ** 2 * F.logsigmoid(logits)
    elsewhere = (1 - maps) ** 4 * p**2 * F.logsigmoid(-logits)
    return -torch.where(peaks, at_peaks, elsewhere).sum() / peaks.sum().clamp(min=1)


def found(logits: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Where a map has a peak: (n, classes, H, W) bool.

    A peak is at least the threshold, and no position around it, of 3 x 3, is higher.
    """
    values = logits.sigmoid()
    return (values >= threshold) & (values == F.max_pool2d(values, 3, stride=1, padding=1))


def f1(peaks: Tensor, objects: Tensor) -> list[float]:
    """The F1 of each class, 2 hits / (peaks + objects), over all images; 1 where both are 0.

    A peak may stand for an object of its class if its cell's centre is within the object's
    radius. As many as possible are paired, each once: these are the hits.

    Args:
        peaks: (n, classes, H, W) bool.
        objects: as in ``heat_maps``.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    scores = []
    for kind in range(peaks.shape[1]):
        hits = total = 0
        for here, there in zip(peaks[:, kind], objects, strict=True):
            wanted = there[there[:, 0] == kind]
            centres = here.nonzero().flip(1) + 0.5
            distances = torch.cdist(centres, wanted[:, 1:3])
            hits += pairs((distances <= wanted[:, 3]).numpy())
            total += len(centres) + len(wanted)
        scores.append(2 * hits / total if total else 1.0)
    return scores


def pairs(allowed: np.ndarray) -> int:
    """How many rows can have a column each to themselves, of those that are True (n, m)."""
    if not allowed.any():
        return 0
    try:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching
    except ImportError as error:
        raise MissingExtraError(
            "Peaks and objects are paired by SciPy, which is not installed. "
            'Run: pip install "renorm[lab]"'
        ) from error
    return int((maximum_bipartite_matching(csr_array(allowed)) >= 0).sum())
