"""Fashion-MNIST as a task of ``renorm.lab``, from the four files that its authors publish."""

import gzip
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from renorm.errors import ArgumentError
from renorm.lab.tasks import Task, every_nth_of_each_class

FOLDER = "fashion_mnist"
CLASSES, SIDE = 10, 28
_BYTES = 8  # the idx format's code of unsigned bytes


@cache
def load(data: Path) -> Task:
    """All 60,000 training images and 5,000 of the test images: every second one of each class.

    Args:
        data: the folder in which ``fashion_mnist/`` has ``train-images-idx3-ubyte.gz`` and the
            other three.

    Raises:
        ArgumentError: a file is not there or is not of its format.

    Source: Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747).
    """
    train, train_labels = _split(data / FOLDER, "train")
    test, test_labels = _split(data / FOLDER, "t10k")
    chosen = every_nth_of_each_class(test_labels, 2)
    mean, std = train.mean(), train.std()
    images = ((part - mean) / std for part in (train, test[chosen]))
    return Task(next(images), train_labels, next(images), test_labels[chosen], CLASSES)


def _split(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) float32 and labels (N,) int64."""
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz")
    if images.shape[1:] != (SIDE, SIDE) or labels.shape != images.shape[:1]:
        raise ArgumentError(
            f"{folder} must have (N, {SIDE}, {SIDE}) images and N labels, got "
            f"{tuple(images.shape)} and {tuple(labels.shape)} of {name}. Fetch the files again."
        )
    return images[:, None].float(), labels.long()


def read_idx(path: Path) -> Tensor:
    """The array in a gzipped idx file of unsigned bytes.

    The file has two zeros, the code of the type, the number of dimensions, each dimension as a
    big-endian int32, then the values.

    Raises:
        ArgumentError: the file is not there, or something else.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise ArgumentError(
            f"There is no file {path}. Give the folder that has {FOLDER}/ by --data."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise ArgumentError(f"{path} cannot be read: {error}. Fetch it again.") from error
    start = 4 + 4 * int.from_bytes(content[3:4])
    shape = [int.from_bytes(content[at : at + 4]) for at in range(4, start, 4)]
    if content[:3] != bytes([0, 0, _BYTES]) or len(content) != start + math.prod(shape):
        raise ArgumentError(
            f"{path} is no idx file of unsigned bytes: it has {len(content)} bytes and begins "
            f"with {content[:4]!r}. Fetch it again."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())
