import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.datafiles import md5, shapes, write_omniglot
from renorm.errors import DataError
from renorm.lab.data import omniglot

module: Any = importlib.import_module("renorm.lab.data.omniglot")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write_omniglot(tmp_path / "omniglot", alphabets=8, characters=2, drawings=3)
    monkeypatch.setattr(module, "MD5", md5(path))
    monkeypatch.setattr(module, "SHAPES", shapes(path, ("x", "y", "alphabet")))
    return path


def test_characters_for_testing_are_those_of_three_alphabets(path: Path) -> None:
    images = omniglot(path.parents[1])
    with np.load(path) as archive:
        pixels = torch.from_numpy(archive["x"])[:, None]
    assert torch.equal(images.train_images, pixels[:30])
    assert torch.equal(images.test_images, pixels[30:])
    assert images.train_labels.tolist() == [i // 3 for i in range(30)]
    assert images.test_labels.tolist() == [i // 3 for i in range(30, 48)]
    assert images.train_images.dtype == torch.uint8


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no omniglot_small_28\.npz in {tmp_path}/omniglot\. "):
        omniglot(tmp_path)


def test_a_damaged_file_is_named_with_both_md5(path: Path) -> None:
    expected = md5(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path} is .* md5 is {md5(path)}, expected {expected}"):
        omniglot(path.parents[1])


@pytest.mark.parametrize("wrong", [{"x": (48, 28, 27)}, {"drawer": (48,)}])
def test_arrays_of_another_shape_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, tuple[int, ...]]
) -> None:
    monkeypatch.setattr(module, "SHAPES", module.SHAPES | wrong)
    got = r"\(48, 28, 28\)" if "x" in wrong else "none"
    with pytest.raises(DataError, match=f"an array '{next(iter(wrong))}' .* got {got}"):
        omniglot(path.parents[1])
