"""Data sets that come with an installed package: nothing is downloaded."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from renorm.errors import MissingExtraError

TEST_EVERY = 4


@dataclass(frozen=True, eq=False)
class Task:
    """Images and labels in a fixed, stratified split.

    Args:
        train_images, test_images: (N, C, H, W) float32, scaled by the training images' mean and
            standard deviation.
        train_labels, test_labels: (N,) int64 in ``range(classes)``.
        classes: how many labels there are.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


@cache
def digits() -> Task:
    """scikit-learn's digits: 1,797 scanned digits of 8 x 8 pixels, 10 classes.

    Of each class, every fourth image in the order of the data set is for testing; the split
    draws no random numbers, so it is the same everywhere.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "The digits come with scikit-learn, which is not installed. "
            'Run: pip install "renorm[lab]"'
        ) from error
    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8)
    labels = torch.from_numpy(targets).long()
    test = every_nth_of_each_class(labels, TEST_EVERY)
    mean, std = images[~test].mean(), images[~test].std()
    images = (images - mean) / std
    return Task(images[~test], labels[~test], images[test], labels[test], 10)


def every_nth_of_each_class(labels: Tensor, n: int) -> Tensor:
    """True (N,) at the first, n+1st, 2n+1st ... example of each class.

    >>> every_nth_of_each_class(torch.tensor([0, 1, 0, 1, 0]), 2)
    tensor([ True,  True, False, False,  True])
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[torch.nonzero(labels == label).flatten()[::n]] = True
    return chosen


TASKS = {"digits": digits}
