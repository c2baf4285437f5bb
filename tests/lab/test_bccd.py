import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.datafiles import md5, shapes, write_bccd
from renorm.errors import DataError, MissingExtraError
from renorm.lab.data import bccd

module: Any = importlib.import_module("renorm.lab.data.bccd")
BOXES = [
    [[0, 0, 0, 80, 40], [1, 320, 240, 400, 400]],
    [[2, 100, 200, 120, 200], [2, 100, 200, 120, 220]],  # the first has no height
    [[0, 40, 40, 80, 80]],
]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write_bccd(tmp_path / "bccd", BOXES, test=[1])
    monkeypatch.setattr(module, "MD5", md5(path))
    monkeypatch.setattr(module, "SHAPES", shapes(path, tuple(module.SHAPES)))
    return path


def test_photographs_are_reduced_and_boxes_without_area_left_out(path: Path) -> None:
    cells = bccd(path.parents[1])
    assert cells.images.shape == (3, 3, 120, 160)
    assert cells.images.dtype == torch.uint8
    # means of 4 x 4 pixels, off the edges where JPEG rings
    assert abs(int(cells.images[0, 0, 5, 10]) - 250) <= 5
    assert abs(int(cells.images[0, 0, 40, 40]) - 40) <= 5
    assert abs(int(cells.images[0, 1, 80, 90]) - 250) <= 5
    assert abs(int(cells.images[2, 2, 100, 100]) - 60) <= 5
    assert [boxes.tolist() for boxes in cells.boxes] == [BOXES[0], BOXES[1][1:], BOXES[2]]
    assert (cells.train.tolist(), cells.test.tolist(), cells.reduction) == ([0, 2], [1], 4)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no bccd\.npz in {tmp_path}/bccd\. "):
        bccd(tmp_path)


def test_a_damaged_file_is_named_with_both_md5(path: Path) -> None:
    expected = md5(path)
    path.write_bytes(b"\0" + path.read_bytes())
    with pytest.raises(DataError, match=rf"{path} is .* md5 is {md5(path)}, expected {expected}"):
        bccd(path.parents[1])


def test_photographs_of_another_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    image = importlib.import_module("PIL.Image")
    small = image.fromarray(np.zeros((10, 20, 3), np.uint8))
    monkeypatch.setattr(image, "open", lambda file: small)
    with pytest.raises(DataError, match=r"640 x 480, got \(20, 10\)"):
        module._reduced(b"")


def test_without_pillow_the_command_to_install_it_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r'pip install "renorm\[data\]"'):
        bccd(path.parents[1])
