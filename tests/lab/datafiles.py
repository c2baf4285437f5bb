"""Small files in the formats of the data sets, of noise."""

import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    return head + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, *, zipped: bool) -> dict[str, np.ndarray]:
    """40 + 20 images in four files; the arrays by file."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    arrays = {}
    for images, labels, count in ((NAMES[0], NAMES[1], 40), (NAMES[2], NAMES[3], 20)):
        arrays[images] = draw.integers(0, 256, (count, 28, 28))
        arrays[labels] = np.arange(count) % 10
    for name, values in arrays.items():
        held = idx(values)
        name = f"{name}-ubyte"
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(held, mtime=0))
        else:
            (folder / name).write_bytes(held)
    return arrays


def write_omniglot(folder: Path, alphabets: int, characters: int, drawings: int) -> Path:
    """An archive whose characters each have a pattern of their own, with noise."""
    draw = np.random.default_rng(0)
    labels = np.arange(alphabets * characters).repeat(drawings)
    patterns = draw.integers(0, 2, (alphabets * characters, 28, 28)) * 200
    images = patterns[labels] + draw.integers(0, 40, (len(labels), 28, 28))
    folder.mkdir(parents=True)
    path = folder / "omniglot_small_28.npz"
    alphabet = (labels // characters).astype(np.int8)
    np.savez(path, x=images.astype(np.uint8), y=labels.astype(np.int16), alphabet=alphabet)
    return path


def write_bccd(folder: Path, boxes: list[list[list[int]]], test: list[int]) -> Path:
    """An archive of photographs: photograph i is of one colour but for its boxes."""
    jpegs = []
    for number, of_image in enumerate(boxes):
        pixels = np.full((480, 640, 3), 40 + 10 * number, np.uint8)
        for kind, left, top, right, bottom in of_image:
            pixels[top:bottom, left:right, kind] = 250
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        jpegs.append(file.getvalue())
    counts = [len(of_image) for of_image in boxes]
    folder.mkdir(parents=True)
    path = folder / "bccd.npz"
    np.savez(
        path,
        jpeg=np.frombuffer(b"".join(jpegs), np.uint8),
        offsets=np.cumsum([0, *map(len, jpegs)]),
        boxes=np.array([box for of_image in boxes for box in of_image], np.int16),
        box_offsets=np.cumsum([0, *counts]).astype(np.int32),
        split_trainval=np.array([i for i in range(len(boxes)) if i not in test], np.int16),
        split_test=np.array(test, np.int16),
    )
    return path


def shapes(path: Path, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    with np.load(path) as archive:
        return {name: archive[name].shape for name in names}
