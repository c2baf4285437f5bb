"""The idx format, in which MNIST and sets like it are published."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from renorm.errors import DataError
from renorm.lab.data import files

UNSIGNED_BYTES = 8


def read(path: Path) -> Tensor:
    """The uint8 array of an idx file, gzipped or not.

    Raises:
        DataError: the file cannot be read, or is something else.
    """
    return parsed(path, files.content(path))


def parsed(path: Path, held: bytes) -> Tensor:
    """The uint8 array in the bytes of an idx file, gzipped if the name ends in .gz.

    The file has two zeros, the code of the type, the number of dimensions, each dimension as a
    big-endian int32, then the values.

    Raises:
        DataError: it is something else.
    """
    if path.suffix == ".gz":
        try:
            held = gzip.decompress(held)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked: {error}. Fetch it again.") from error
    start = 4 + 4 * int.from_bytes(held[3:4])
    shape = [int.from_bytes(held[at : at + 4]) for at in range(4, start, 4)]
    if held[:3] != bytes([0, 0, UNSIGNED_BYTES]) or len(held) != start + math.prod(shape):
        raise DataError(
            f"{path} is no idx file of unsigned bytes: it has {len(held)} bytes and begins with "
            f"{held[:4]!r}. Fetch it again."
        )
    return torch.from_numpy(np.frombuffer(held, np.uint8, offset=start).reshape(shape).copy())
