import sys

import pytest
import torch

from renorm.errors import MissingExtraError
from renorm.lab.data import breast_cancer


def test_rows_are_split_by_class_and_scaled_by_the_training_rows() -> None:
    table = breast_cancer()
    assert table.train_labels.bincount().tolist() == [159, 267]
    assert table.test_labels.bincount().tolist() == [53, 90]
    assert table.train_images.shape == (426, 30)
    assert table.classes == 2
    torch.testing.assert_close(table.train_images.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(table.train_images.std(0), torch.ones(30), atol=1e-5, rtol=0)
    assert table.test_images.mean(0).abs().max() > 0.01


def test_without_scikit_learn_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "renorm\[lab\]"'):
        breast_cancer()
