"""A table that comes with scikit-learn."""

import torch

from renorm.errors import MissingExtraError
from renorm.lab.data.images import Images
from renorm.lab.examples import every_nth_of_each_class

TEST_EVERY = 4


def breast_cancer() -> Images:
    """Wisconsin's breast cancer table: 569 tumours, 30 measurements of cell nuclei, 2 classes.

    Of each class, every fourth row is for testing; each column is scaled by the mean and the
    deviation of the training rows.

    Raises:
        MissingExtraError: scikit-learn is not installed.

    Source: Street, Wolberg and Mangasarian 1993, Nuclear feature extraction for breast tumor
    diagnosis.
    """
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise MissingExtraError(
            "The table comes with scikit-learn, which is not installed. "
            'Run: pip install "renorm[lab]"'
        ) from error
    columns, targets = load_breast_cancer(return_X_y=True)
    rows, labels = torch.from_numpy(columns), torch.from_numpy(targets).long()
    test = every_nth_of_each_class(labels, TEST_EVERY)
    rows = ((rows - rows[~test].mean(0)) / rows[~test].std(0)).float()
    return Images(rows[~test], labels[~test], rows[test], labels[test], 2)
