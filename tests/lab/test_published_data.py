"""The readers on the files themselves, where they are at hand."""

import os
from pathlib import Path

import pytest
import torch

from renorm.lab.data import bccd, cifar10, fashion_mnist, mnist, omniglot

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
FOLDER = Path(os.environ.get("RENORM_DATA") or SHARED)


def needs(*places: str) -> pytest.MarkDecorator:
    there = any((FOLDER / place).is_dir() for place in places)
    return pytest.mark.skipif(
        not there, reason=f"there is no {places[0]} in {FOLDER}; set RENORM_DATA to run it"
    )


@needs("MNIST/raw", "mnist")
def test_mnist_has_the_known_mean_and_deviation() -> None:
    images = mnist(FOLDER)
    pixels = images.train_images.float() / 255
    assert (len(images.train_images), len(images.test_images)) == (60_000, 10_000)
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.1307, 0.3081)


@needs("FashionMNIST/raw", "fashion_mnist")
def test_fashion_mnist_has_the_known_mean_and_deviation() -> None:
    images = fashion_mnist(FOLDER)
    pixels = images.train_images.float() / 255
    assert images.test_labels.bincount().tolist() == [1000] * 10
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.2860, 0.3530)


@needs("cifar-10-batches-py")
def test_cifar_10_is_balanced_and_says_what_it_is() -> None:
    images = cifar10(FOLDER)
    assert images.train_labels.bincount().tolist() == [5000] * 10
    assert images.test_labels.bincount().tolist() == [1000] * 10
    assert images.note in ("", "JPEG q75 copies")


@needs("omniglot")
def test_omniglot_has_157_characters_for_training_and_85_others_for_testing() -> None:
    images = omniglot(FOLDER)
    train, test = images.train_labels.bincount(minlength=242), images.test_labels.bincount()
    assert (len(train), len(test), images.classes) == (242, 242, 242)
    assert torch.equal(train + test, torch.full((242,), 20))
    assert int((train > 0).sum()) == 157
    assert not ((train > 0) & (test > 0)).any()


@needs("bccd")
def test_bccd_has_the_boxes_that_it_says_but_two() -> None:
    cells = bccd(FOLDER)
    counts = torch.cat(cells.boxes)[:, 0].bincount().tolist()
    assert counts == [4153, 372, 361]
    assert cells.images.shape == (364, 3, 120, 160)
    assert sorted([*cells.train.tolist(), *cells.test.tolist()]) == list(range(364))
