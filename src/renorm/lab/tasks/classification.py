"""Images with labels, and rows of a table with labels."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn

from renorm.lab.data import Images
from renorm.lab.examples import Examples, at_most, every_nth_of_each_class
from renorm.lab.models import MODELS
from renorm.lab.tasks.base import Metric, Plan
from renorm.lab.tasks.fitting import Problem
from renorm.lab.tasks.supervised import Supervised


class Classification(Supervised):
    """Labelled images, classified by one of the nets of ``renorm.lab.models``.

    A net is judged by ``judged`` test images at most, every nth of each class, since it is judged
    ten times along a run.

    Args:
        images: reads the data set; called once, when they are first needed.
        model: name of the net.
    """

    judged: ClassVar[int] = 10_000

    def __init__(self, images: Callable[[], Images], model: str) -> None:
        self._read = images
        self._model = model

    @property
    def metric(self) -> Metric:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The accuracy, under a name that has the note of the images, if there is one."""
        plain = super().metric
        note = self._images.note
        return replace(plain, name=f"{plain.name}, {note}") if note else plain

    def data(self) -> tuple[Examples, Examples]:
        """The images for training and those for testing."""
        return self._examples

    def model(self) -> nn.Module:
        """A new net, its weights drawn from torch's generator.

        Raises:
            ArgumentError: the net does not take images of this size.
        """
        images = self._images
        return MODELS[self._model].build(tuple(images.train_images.shape[1:]), images.classes)

    def problem(self, plan: Plan) -> Problem:
        """What a run trains on, and the part of the test examples that it is judged by."""
        problem = super().problem(plan)
        return replace(problem, test=at_most(problem.test, self.judged))

    @cached_property
    def _images(self) -> Images:
        return self._read()

    @cached_property
    def _examples(self) -> tuple[Examples, Examples]:
        return self._images.examples()


class Digits(Classification):
    """scikit-learn's digits."""


class Table(Classification):
    """The rows of a table: a few hundred examples, which soon are learnt."""

    steps: ClassVar[int] = 300


class Mnist(Classification):
    """MNIST, and sets of the same size."""

    steps: ClassVar[int] = 500
    judged: ClassVar[int] = 5000


class Cifar10(Classification):
    """CIFAR-10: the images take a larger net, which is judged by fewer of them."""

    steps: ClassVar[int] = 400
    lr: ClassVar[float] = 0.05
    judged: ClassVar[int] = 1000


class MirroredCifar10(Cifar10):
    """Two fifths of CIFAR-10's training images, each with its mirror image."""

    steps: ClassVar[int] = 4000
    lr: ClassVar[float] = 0.1
    batch_size: ClassVar[int] = 64
    group_size: ClassVar[int] = 8
    judged: ClassVar[int] = 2000
    trained: ClassVar[int] = 20_000

    @cached_property
    def _images(self) -> Images:
        images = self._read()
        pixels = images.train_images[: self.trained]
        labels = images.train_labels[: self.trained]
        return replace(
            images,
            train_images=torch.cat([pixels, pixels.flip(3)]),
            train_labels=labels.repeat(2),
        )


class Characters(Classification):
    """Which of Omniglot's characters it is: many classes of few examples, of all alphabets.

    Five of the twenty drawings of each are for testing.
    """

    steps: ClassVar[int] = 1500
    batch_size: ClassVar[int] = 128
    group_size: ClassVar[int] = 32
    held_out_every: ClassVar[int] = 4

    @cached_property
    def _images(self) -> Images:
        images = self._read()
        pixels = torch.cat([images.train_images, images.test_images])
        labels = torch.cat([images.train_labels, images.test_labels])
        test = every_nth_of_each_class(labels, self.held_out_every)
        return Images(pixels[~test], labels[~test], pixels[test], labels[test], images.classes)
