"""The tables that come with scikit-learn, with columns as they were measured."""

from collections.abc import Iterator
from functools import cache

import torch
from sklearn.datasets import load_breast_cancer, load_wine

from planted.ground import Batch, Ground
from renorm.lab.conditions import Shuffled
from renorm.lab.data import Images
from renorm.lab.examples import every_nth_of_each_class

TEST_EVERY = 4


@cache
def table(name: str) -> Images:
    """Rows (N, features) that are not scaled: tumours, or wines.

    Their columns have deviations from 0.003 to 570, and from 0.1 to 315.
    """
    load = {"breast_cancer": load_breast_cancer, "wine": load_wine}[name]
    columns, targets = load(return_X_y=True)
    rows, labels = torch.from_numpy(columns).float(), torch.from_numpy(targets).long()
    test = every_nth_of_each_class(labels, TEST_EVERY)
    classes = len(labels.unique())
    return Images(rows[~test], labels[~test], rows[test], labels[test], classes)


def of(ground: Ground, unit: float = 1.0) -> Images:
    """The tumours beside the digits, the wines beside other data, in another unit."""
    found = table("breast_cancer" if ground.data == "digits" else "wine")
    rows = found.train_images / unit, found.test_images / unit
    return Images(rows[0], found.train_labels, rows[1], found.test_labels, found.classes)


def batches(rows: Images, size: int, ground: Ground, stream: int = 1) -> Iterator[Batch]:
    """Batches of rows at random, without an end."""
    for indices in Shuffled(size, size).batches(rows.train_labels, ground.generator(stream)):
        yield rows.train_images[indices], rows.train_labels[indices]
