"""scikit-learn's digits, which come with the package."""

from functools import cache

import torch

from renorm.errors import MissingExtraError
from renorm.lab.data.images import Images
from renorm.lab.examples import every_nth_of_each_class

TEST_EVERY = 4


@cache
def digits() -> Images:
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
    return Images(images[~test], labels[~test], images[test], labels[test], 10)
