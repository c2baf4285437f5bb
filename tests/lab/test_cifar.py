import hashlib
import importlib
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lab.datafiles import md5
from renorm.errors import DataError
from renorm.lab.data import cifar10

module: Any = importlib.import_module("renorm.lab.data.cifar")
COUNT = 20


def arrays(number: int) -> tuple[np.ndarray, list[int]]:
    draw = np.random.default_rng(number)
    return draw.integers(0, 256, (COUNT, 3072), np.uint8), draw.integers(0, 10, COUNT).tolist()


def of_python_3(protocol: int) -> Callable[[np.ndarray, list[int]], bytes]:
    return lambda data, labels: pickle.dumps({b"labels": labels, b"data": data}, protocol)


def of_python_2(data: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 and the NumPy of its time wrote, as in the published files."""
    held = data.tobytes()
    return b"".join(
        [
            b"\x80\x02}(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02",
            b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01",
            b"J" + struct.pack("<i", len(data)) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", len(held)) + held + b"tb",
            b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.",
        ]
    )


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def files(dump: Any, known: str) -> Path:
        """Six files, taken for the published ones or for the copies."""
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        sums = {"PUBLISHED": {}, "JPEG_COPIES": {}}
        for number, name in enumerate(module.PUBLISHED):
            data, labels = arrays(number)
            (folder / name).write_bytes(dump(data, labels))
            content = hashlib.md5(data.tobytes() + bytes(labels)).hexdigest()
            sums["PUBLISHED"][name] = md5(folder / name) if known == "PUBLISHED" else "0" * 32
            sums["JPEG_COPIES"][name] = content if known == "JPEG_COPIES" else "0" * 32
        for name, table in sums.items():
            monkeypatch.setattr(module, name, table)
        return folder

    return files


@pytest.mark.parametrize(
    "dump", [of_python_2, *map(of_python_3, (2, 4, 5))], ids=["python 2", "2", "4", "5"]
)
@pytest.mark.parametrize("known", ["PUBLISHED", "JPEG_COPIES"])
def test_images_and_labels_are_those_of_the_files(write: Any, dump: Any, known: str) -> None:
    images = cifar10(write(dump, known).parent)
    assert images.train_images.shape == (5 * COUNT, 3, 32, 32)
    assert images.train_images.dtype == torch.uint8
    for number in range(5):
        data, labels = arrays(number)
        part = slice(number * COUNT, (number + 1) * COUNT)
        assert np.array_equal(images.train_images[part].flatten(1).numpy(), data)
        assert images.train_labels[part].tolist() == labels
    data, labels = arrays(5)
    assert np.array_equal(images.test_images.flatten(1).numpy(), data)
    assert images.test_labels.tolist() == labels
    assert images.note == ("JPEG q75 copies" if known == "JPEG_COPIES" else "")


def test_one_copy_among_published_files_is_enough_for_the_note(write: Any) -> None:
    folder = write(of_python_3(4), "PUBLISHED")
    path = folder / "data_batch_3"
    data, labels = arrays(100)
    path.write_bytes(of_python_3(4)(data, labels))
    module.JPEG_COPIES[path.name] = hashlib.md5(data.tobytes() + bytes(labels)).hexdigest()
    assert cifar10(folder.parent).note


def test_a_missing_file_is_named(write: Any) -> None:
    folder = write(of_python_3(4), "PUBLISHED")
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match=rf"CIFAR-10 .* no data_batch_4 in {folder}\. Give"):
        cifar10(folder.parent)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        of_python_3(4)(*arrays(1)),  # another batch
        of_python_3(4)(*arrays(0))[:-100],
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": 5, b"labels": [1]}),
        pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}),
        pickle.dumps({b"data": Harmful(), b"labels": [1]}),
    ],
    ids=["empty", "another batch", "torn", "a list", "no array", "float64", "a call"],
)
@pytest.mark.parametrize("known", ["PUBLISHED", "JPEG_COPIES"])
def test_other_content_is_refused_with_both_md5(
    write: Any, content: bytes, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(of_python_3(4), known)
    monkeypatch.chdir(folder)
    path = folder / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        cifar10(folder.parent)
    expected = module.PUBLISHED["data_batch_1"]
    for part in (str(path), f"md5 is {md5(path)}", f"expected {expected}"):
        assert part in str(caught.value)
    assert not (folder / "harm").exists()


def test_a_download_is_tried_where_files_are_missing(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dataset(root: Path, download: bool) -> None:
        assert download
        assert root == tmp_path
        write(of_python_2, "PUBLISHED")

    fake = SimpleNamespace(datasets=SimpleNamespace(CIFAR10=dataset))
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    assert len(cifar10(tmp_path, download=True).test_images) == COUNT
