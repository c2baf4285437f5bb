"""Metric learning: images of one class shall lie close together, also those of new classes."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from renorm.lab import models
from renorm.lab.data import Images
from renorm.lab.examples import Examples, Part, TensorExamples
from renorm.lab.tasks.base import Metric, Plan
from renorm.lab.tasks.fitting import Problem
from renorm.lab.tasks.supervised import HELD_OUT_EVERY, Supervised

LENGTH = 64
TEMPERATURE = 0.1


class MetricLearning(Supervised):
    """A net that maps images to vectors; tested on classes that it has not been trained on.

    The loss is the supervised contrastive one and needs several images of a class in a batch. The
    score is recall@1: the fraction of test images whose nearest neighbour among the other test
    images, by the cosine, is of the same class. For a search on a validation split, every fifth
    class is held out of the training classes.

    Args:
        images: reads the data set, whose test classes are not among the training classes.
        model: name of the net.
    """

    metric: ClassVar[Metric] = Metric(
        "recall@1", "% of test images whose nearest neighbour is of their class, one never seen"
    )
    steps: ClassVar[int] = 200
    lr: ClassVar[float] = 0.05
    conditions: ClassVar[tuple[str, ...]] = ("pk", "clustered")

    def __init__(self, images: Callable[[], Images], model: str) -> None:
        self._read = images
        self._model = model

    def data(self) -> tuple[Examples, Examples]:
        """Images; a target (2,) is the class and the number of the image."""
        return self._examples

    def model(self) -> nn.Module:
        """A new net with 64 outputs, its weights drawn from torch's generator."""
        return models.find(self._model).build(tuple(self._images.train_images.shape[1:]), LENGTH)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The supervised contrastive loss of a batch, a scalar."""
        return contrastive(outputs, targets[:, 0])

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """recall@1; an image that was drawn twice is no neighbour of itself."""
        return recall_at_1(outputs, *targets.unbind(1))

    def problem(self, plan: Plan) -> Problem:
        """What a run trains on and what it is judged by, with no class in both."""
        if plan.specification.split != "validation":
            return super().problem(plan)
        train, _ = self.data()
        labels = self._images.train_labels
        held_out = torch.isin(labels, labels.unique()[::HELD_OUT_EVERY])
        kept, judged = (
            Part(train, torch.nonzero(part).flatten()) for part in (~held_out, held_out)
        )
        return Problem(kept, judged, self.loss, self.score, self.chunk)

    @cached_property
    def _images(self) -> Images:
        return self._read()

    @cached_property
    def _examples(self) -> tuple[TensorExamples, TensorExamples]:
        train, test = self._images.examples()
        return _numbered(train), _numbered(test)


def _numbered(examples: TensorExamples) -> TensorExamples:
    targets = torch.stack([examples.targets, torch.arange(len(examples))], 1)
    return replace(examples, targets=targets)


def contrastive(vectors: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The mean over images i, and the others p of its class, of -log softmax(s_i)_p.

    s_ij is the cosine of i and j over the temperature, and the softmax is over all j but i. Images
    alone in their class are left out; the loss is 0 if all are.

    Args:
        vectors: (n, d).
        labels: (n,).
        temperature: above 0.

    Source: Khosla et al. 2020 (arXiv 2004.11362), equation 2.
    """
    unit = F.normalize(vectors)
    itself = torch.eye(len(labels), dtype=torch.bool)
    similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    logarithms = similarity.log_softmax(1).masked_fill(itself, 0)
    partners = (labels[:, None] == labels) & ~itself
    counts = partners.sum(1)
    means = (logarithms * partners).sum(1) / counts.clamp(min=1)
    return -means.sum() / (counts > 0).sum().clamp(min=1)


def recall_at_1(vectors: Tensor, labels: Tensor, numbers: Tensor) -> float:
    """The fraction of images whose nearest other image, by the cosine, has the same label.

    Args:
        vectors: (n, d).
        labels: (n,).
        numbers: (n,); rows with the same number are the same image.
    """
    unit = F.normalize(vectors)
    similarity = (unit @ unit.T).masked_fill(numbers[:, None] == numbers, -torch.inf)
    best, nearest = similarity.max(1)
    right = (labels[nearest] == labels) & best.isfinite()
    return int(right.sum()) / len(labels)
