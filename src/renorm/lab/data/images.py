"""Labelled images, the form that the readers of this folder return."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from renorm.lab.examples import TensorExamples


@dataclass(frozen=True, eq=False)
class Images:
    """Images and labels in a fixed split.

    Args:
        train_images, test_images: (N, C, H, W); uint8, or float32 that is scaled already. The
            rows of a table are (N, features) of float32.
        train_labels, test_labels: (N,) int64 in ``range(classes)``.
        classes: how many labels there are.
        note: what must be said beside every figure, such as that the images are copies of less
            quality; empty if there is nothing.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int
    note: str = ""

    def examples(self) -> tuple[TensorExamples, TensorExamples]:
        """The images for training and those for testing.

        uint8 becomes float32 batch by batch, scaled by the training images' mean and standard
        deviation of each channel.
        """
        scale = None
        if self.train_images.dtype == torch.uint8:
            scale = scaling(self.train_images)
        return tuple(
            TensorExamples(images, labels, labels, scale)
            for images, labels in (
                (self.train_images, self.train_labels),
                (self.test_images, self.test_labels),
            )
        )  # pyright: ignore[reportReturnType]


def scaling(images: Tensor) -> Callable[[Tensor], Tensor]:
    """Images (n, C, H, W) of uint8 -> float32 with mean 0 and deviation 1 a channel of ``images``.

    The figures are taken in float64 from counts of the 256 values, which are exact.
    """
    values = torch.arange(256, dtype=torch.float64)
    shape = (-1, 1, 1)
    means, stds = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        mean = (counts * values).sum() / counts.sum()
        means.append(mean)
        stds.append(((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt())
    mean, std = (torch.stack(parts).float().view(shape) for parts in (means, stds))
    return lambda batch: (batch.float() - mean) / std
