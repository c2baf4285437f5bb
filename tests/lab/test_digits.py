import sys

import pytest
import torch

from renorm.errors import MissingExtraError
from renorm.lab.data import digits


def test_the_split_is_stratified_and_whole() -> None:
    task = digits()
    train, test = task.train_labels.bincount(), task.test_labels.bincount()
    assert len(task.train_images) + len(task.test_images) == 1797
    assert torch.equal(test, (train + test + 3) // 4)
    assert len(train) == task.classes == 10


def test_no_test_image_is_trained_on() -> None:
    task = digits()
    seen = {image.numpy().tobytes() for image in task.train_images}
    assert all(image.numpy().tobytes() not in seen for image in task.test_images)


def test_images_are_scaled_by_the_training_images() -> None:
    task = digits()
    assert task.train_images.shape[1:] == (1, 8, 8)
    assert task.train_images.dtype == torch.float32
    assert task.train_images.mean().item() == pytest.approx(0, abs=1e-5)
    assert task.train_images.std().item() == pytest.approx(1, abs=1e-5)
    assert abs(task.test_images.mean()) > 1e-4


def test_without_scikit_learn_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "renorm\[lab\]"'):
        digits.__wrapped__()
