import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.datafiles import idx
from renorm.errors import DataError
from renorm.lab.data.idx import read

VALUES = np.arange(24).reshape(2, 3, 4)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_array_is_read_as_it_was_written(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / ("values.gz" if zipped else "values")
    path.write_bytes(gzip.compress(idx(VALUES)) if zipped else idx(VALUES))
    found = read(path)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), VALUES)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        idx(VALUES)[:-1],
        idx(VALUES) + b"\0",
        b"\0\0\x0b" + idx(VALUES)[3:],  # int16
        b"\x1f" + idx(VALUES)[1:],
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "values"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"values is no idx .* has {len(content)} bytes"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(idx(VALUES), mtime=0)[:-9]], ids=["no gzip", "torn"]
)
def test_what_cannot_be_unpacked_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "values.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"values\.gz cannot be unpacked"):
        read(path)


def test_a_file_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is a directory"):
        read(tmp_path)
