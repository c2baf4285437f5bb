"""Fashion-MNIST for the benchmarks, from the four files that its authors publish."""

from functools import cache
from pathlib import Path

from torch import Tensor

from renorm.errors import DataError
from renorm.lab.data import Images, idx
from renorm.lab.data.mnist import CLASSES, SIDE, paired
from renorm.lab.examples import every_nth_of_each_class

FOLDER = "fashion_mnist"
__all__ = ["CLASSES", "FOLDER", "SIDE", "load"]


@cache
def load(data: Path) -> Images:
    """All 60,000 training images and 5,000 of the test images: every second one of each class.

    They are float32, with mean 0 and deviation 1 over all training images.

    Args:
        data: the folder in which ``fashion_mnist/`` has ``train-images-idx3-ubyte.gz`` and the
            other three.

    Raises:
        DataError: a file is not there or is not of its format.

    Source: Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747).
    """
    train, train_labels = _split(data / FOLDER, "train")
    test, test_labels = _split(data / FOLDER, "t10k")
    chosen = every_nth_of_each_class(test_labels, 2)
    mean, std = train.mean(), train.std()
    images = ((part - mean) / std for part in (train, test[chosen]))
    return Images(next(images), train_labels, next(images), test_labels[chosen], CLASSES)


def _split(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) float32 and labels (N,) int64."""
    paths = [folder / f"{name}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"There is no file {path}. Give the folder that has {FOLDER}/ by --data."
            )
    images, labels = paired(idx.read(paths[0]), idx.read(paths[1]), folder)
    return images.float(), labels
