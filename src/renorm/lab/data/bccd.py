"""BCCD: photographs of blood smears with boxes around the cells, from one .npz file."""

import io
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from renorm.errors import DataError, MissingExtraError
from renorm.lab.data import archive, files

TITLE, FOLDER, FILE = "BCCD", "bccd", "bccd.npz"
MD5 = "997a535b2c2f2ffb6641b75634fa39ac"
CLASSES = ("red", "white", "platelet")
SHAPES = {
    "jpeg": (7_575_393,),
    "offsets": (365,),
    "boxes": (4888, 5),
    "box_offsets": (365,),
    "split_trainval": (292,),
    "split_test": (72,),
}
WIDTH, HEIGHT, REDUCTION = 640, 480, 4


@dataclass(frozen=True, eq=False)
class BloodCells:
    """Photographs and the boxes around their cells.

    Args:
        images: (N, 3, H, W) uint8, RGB.
        boxes: of each image (n, 5) int64: class, left, top, right, bottom, in pixels of it times
            ``reduction``.
        train, test: indices of the images.
        reduction: by which the photographs were made smaller, each way.
    """

    images: Tensor
    boxes: tuple[Tensor, ...]
    train: Tensor
    test: Tensor
    reduction: int


def bccd(folder: Path | None = None) -> BloodCells:
    """BCCD: 364 photographs of 640 x 480, 292 for training (its train and val), 72 for testing.

    There are boxes of 4,153 red cells, 372 white cells and 361 platelets; two without area are
    left out. The photographs are reduced to 160 x 120, each pixel the mean of 4 x 4.

    Args:
        folder: has ``bccd/bccd.npz``; None for the default of ``files.root``.

    Raises:
        DataError: the file is not there or damaged.
        MissingExtraError: Pillow, which decodes the photographs, is not installed.
    """
    found = archive.arrays(TITLE, files.root(folder), FOLDER, FILE, MD5, SHAPES)
    jpegs = (found["jpeg"][start:end] for start, end in pairwise(found["offsets"]))
    images = np.stack([_reduced(jpeg.tobytes()) for jpeg in jpegs])
    boxes = torch.from_numpy(found["boxes"]).long()
    kept = [
        part[(part[:, 3] > part[:, 1]) & (part[:, 4] > part[:, 2])]
        for part in boxes.split(np.diff(found["box_offsets"]).tolist())
    ]
    return BloodCells(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        tuple(kept),
        torch.from_numpy(found["split_trainval"]).long(),
        torch.from_numpy(found["split_test"]).long(),
        REDUCTION,
    )


def _reduced(jpeg: bytes) -> np.ndarray:
    """One photograph, (H, W, 3) uint8."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError(
            "The photographs of BCCD are decoded by Pillow, which is not installed. "
            'Run: pip install "renorm[data]"'
        ) from error
    photograph = Image.open(io.BytesIO(jpeg)).convert("RGB")
    if photograph.size != (WIDTH, HEIGHT):
        raise DataError(
            f"The photographs of BCCD are {WIDTH} x {HEIGHT}, got {photograph.size}. "
            "Fetch the file again."
        )
    return np.asarray(photograph.reduce(REDUCTION))
