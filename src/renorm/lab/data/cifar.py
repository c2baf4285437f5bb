"""CIFAR-10, from the Python batches that its authors publish."""

import codecs
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from renorm.errors import DataError
from renorm.lab.data import files
from renorm.lab.data.images import Images

TITLE, FOLDER, CLASSES = "CIFAR-10", "cifar-10-batches-py", 10
SHAPE = (3, 32, 32)
COPIES = "JPEG q75 copies"

PUBLISHED = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
# of the pixels and then the labels, one byte each: unlike the md5 of a pickle it does not depend
# on the versions of Python and NumPy that wrote the file
JPEG_COPIES = {
    "data_batch_1": "38314b08a5b32c870e88bdfdc82ac6ed",
    "data_batch_2": "ba014783d2caf49fdca1c48714742c04",
    "data_batch_3": "394f972a7512d9ab0f093ac44ac2fba4",
    "data_batch_4": "f2d359add51bbae985967d6aaec91992",
    "data_batch_5": "dca4ac14a4be19e2a61e6504daa3b7ac",
    "test_batch": "c138df37aff0ed03657cc3c03b459497",
}


def cifar10(folder: Path | None = None, *, download: bool = False) -> Images:
    """CIFAR-10: 50,000 + 10,000 photographs of ten kinds of things, in colour, 32 x 32.

    Besides the published files, copies of all images that went through JPEG of quality 75 are
    known; ``note`` says so. Their figures compare with one another, not with published ones.

    Args:
        folder: has ``cifar-10-batches-py``; None for the default of ``files.root``.
        download: whether torchvision may fetch what is not there.

    Raises:
        DataError: a file is not there or neither the published one nor the copy, or could not be
            fetched.
        MissingExtraError: it is to be fetched, and torchvision is not installed.

    Source: Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """
    folder = files.root(folder)
    try:
        paths = _paths(folder)
    except DataError:
        if not download:
            raise
        files.torchvision_download(TITLE, "CIFAR10", folder)
        paths = _paths(folder)
    batches = [_batch(path) for path in paths]
    images = torch.cat([batch[0] for batch in batches[:-1]])
    labels = torch.cat([batch[1] for batch in batches[:-1]])
    copies = any(batch[2] for batch in batches)
    return Images(images, labels, *batches[-1][:2], CLASSES, COPIES if copies else "")


def _paths(folder: Path) -> list[Path]:
    return [files.located(TITLE, folder, (FOLDER,), (name,)) for name in PUBLISHED]


def _batch(path: Path) -> tuple[Tensor, Tensor, bool]:
    """Images (N, 3, 32, 32) uint8, labels (N,), and whether they are the copies."""
    held, published = files.content(path), PUBLISHED[path.name]
    found = files.md5(held)
    if found == published:
        return *_tensors(*_parsed(held)), False
    try:
        pixels, labels = _parsed(held)
        inside = files.md5(pixels.tobytes() + labels)
    except Exception as error:  # a damaged pickle raises nearly anything
        raise files.damaged(path, found, published) from error
    if inside != JPEG_COPIES[path.name]:
        raise files.damaged(path, found, published)
    return *_tensors(pixels, labels), True


def _parsed(held: bytes) -> tuple[np.ndarray, bytes]:
    """Pixels (N, 3072) uint8 and labels, a byte each."""
    entries = _Arrays(io.BytesIO(held), encoding="bytes").load()
    return entries[b"data"], bytes(entries[b"labels"])


def _tensors(pixels: np.ndarray, labels: bytes) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(pixels.reshape(-1, *SHAPE).copy()), torch.tensor(list(labels))


class _Arrays(pickle.Unpickler):
    """Unpickles plain values and arrays of uint8; nothing else that a file names is called."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """What stands for a name in the file: NumPy 1 and 2 have different modules."""
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("multiarray", "_reconstruct"): lambda *_: np.empty(0, np.uint8),
            ("numeric", "_frombuffer"): _from_buffer,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _uint8,
            ("_codecs", "encode"): codecs.encode,  # bytes, as Python 3 writes them for Python 2
        }
        found = known.get((module.rpartition(".")[2], name))
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a batch of images")
        return found


def _from_buffer(held: bytes, dtype: np.dtype, shape: tuple[int, ...], *_: Any) -> np.ndarray:
    return np.frombuffer(held, dtype).reshape(shape)


def _uint8(name: str | bytes, *_: Any) -> np.dtype:
    """A copy of the type, as its state is set next; the 0 and 1 of old files are deprecated."""
    if name not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"pixels are uint8, not {name!r}")
    return np.dtype("u1", False, True)
