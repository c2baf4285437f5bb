"""What the patients of a run are made of: data, a seed, and how deep the nets are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from planted.nets import Plain
from renorm.lab.conditions import Sampler, Shuffled
from renorm.lab.data import Images, cifar10, digits, fashion_mnist, mnist
from renorm.lab.data.images import scaling
from renorm.lab.examples import TensorExamples, at_most

READERS: dict[str, Callable[[Path | None], Images]] = {
    "digits": lambda _: digits(),
    "fashion_mnist": fashion_mnist,
    "mnist": mnist,
    "cifar10": cifar10,
}
TRAIN, TEST = 4000, 1000  # images at most, evenly over the classes
HELD_OUT = 50  # images a batch
WIDTHS, DEEP = (16, 32, 64), (16, 16, 32, 32, 64)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Ground:
    """What all patients of a run are made of.

    Args:
        data: a key of ``READERS``.
        seed: of weights and orders.
        deep: whether nets have more layers.
        folder: of the data, laid out as the readers of ``renorm.lab.data`` want it.
    """

    data: str = "digits"
    seed: int = 0
    deep: bool = False
    folder: Path | None = None

    @property
    def images(self) -> Images:
        """Scaled to mean 0 and deviation 1, at most 16 pixels a side."""
        return _images(self.data, self.folder)

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.images.train_images.shape[1]

    @property
    def blocks(self) -> int:
        """Residual blocks in a stage."""
        return 2 if self.deep else 1

    def net(self, **options: bool) -> Plain:
        """A plain convolutional net with fresh weights."""
        widths = DEEP if self.deep else WIDTHS
        return Plain(self.images.classes, self.channels, widths, **options)

    def generator(self, stream: int) -> torch.Generator:
        """Draws that are the same in every run, and others in every stream and seed."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    def batches(self, sampler: Sampler | int, stream: int = 1) -> Iterator[Batch]:
        """Training batches without an end, of a sampler or of so many examples at random."""
        if isinstance(sampler, int):
            sampler = Shuffled(sampler, sampler)
        images = self.images
        for indices in sampler.batches(images.train_labels, self.generator(stream)):
            yield images.train_images[indices], images.train_labels[indices]

    def given(self, sampler: Sampler | int, count: int) -> list[Batch]:
        """The batches that a user gives: ``count`` of those, in another order than trained by."""
        return list(islice(self.batches(sampler, 2), count))

    def held_out(self) -> list[Batch]:
        """The images for testing."""
        images = self.images
        parts = images.test_images.split(HELD_OUT), images.test_labels.split(HELD_OUT)
        return list(zip(*parts, strict=True))

    def half(self, upper: bool, size: int, stream: int) -> Iterator[Batch]:
        """Batches of the upper or the lower half of the classes at random, without an end."""
        images = self.images
        chosen = torch.nonzero((images.train_labels >= images.classes // 2) == upper).flatten()
        for part in Shuffled(size, size).batches(chosen, self.generator(stream)):
            yield images.train_images[chosen[part]], images.train_labels[chosen[part]]


@cache
def _images(data: str, folder: Path | None) -> Images:
    found = READERS[data](folder)
    if found.train_images.dtype != torch.uint8:
        return found
    scale = scaling(found.train_images)

    def some(images: Tensor, labels: Tensor, count: int) -> Batch:
        few = at_most(TensorExamples(images, labels, labels), count)
        inputs, targets = few.batch(torch.arange(len(few)))
        return F.avg_pool2d(scale(inputs), 2), targets

    train = some(found.train_images, found.train_labels, TRAIN)
    test = some(found.test_images, found.test_labels, TEST)
    return Images(*train, *test, found.classes, found.note)
