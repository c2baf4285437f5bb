"""The batch norm paper's own task: digits in black and white, for layers of sigmoids."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from renorm.lab.data import Images
from renorm.lab.models import SigmoidMLP
from renorm.lab.tasks.base import Plan
from renorm.lab.tasks.classification import Classification

# hidden layers of each net
SIGMOIDS = {"sigmoids3": 3, "sigmoids8": 8}
PERCENT = (15, 50, 85)
TIMES = 20  # a run
POOLED = 10  # batches that are looked at together


class BinaryDigits(Classification):
    """Binary images, classified by layers of 100 sigmoids, trained by plain SGD.

    The layers have biases, which matter where there is no norm. Beside the score it measures how
    the inputs of the last layer of sigmoids are distributed along the training: the 15, 50 and 85 %
    quantiles of each unit over ten batches, twenty times. The figures: ``drift``, the standard
    deviation of these quantiles over time, in units of the mean distance of the outer two, mean
    over quantiles, median over units; ``quantile 15 at 5 %`` and so on, those of unit 0.

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167), section 4.1 and figure 1. The paper does not
    give optimizer, learning rate and initial weights.
    """

    steps: ClassVar[int] = 50_000
    batch_size: ClassVar[int] = 60
    group_size: ClassVar[int] = 60
    judged: ClassVar[int] = 5000
    normalizers: ClassVar[tuple[str, ...]] = ("batch_norm", "none")
    conditions: ClassVar[tuple[str, ...]] = ("iid",)

    def model(self) -> nn.Module:
        """A new net, its weights drawn from torch's generator."""
        images = self._images
        inputs = math.prod(images.train_images.shape[1:])
        return SigmoidMLP(images.classes, inputs, SIGMOIDS[self._model], bias=True)

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(model.parameters(), lr)

    @contextmanager
    def watching(self, model: nn.Module, plan: Plan) -> Iterator[list[tuple[str, float]]]:
        """The figures of the last sigmoids' inputs."""
        last = [one for one in model.modules() if isinstance(one, nn.Sigmoid)][-1]
        figures: list[tuple[str, float]] = []
        watch = _Watch(plan.specification.steps)
        handle = last.register_forward_pre_hook(watch)
        try:
            yield figures
        finally:
            handle.remove()
        figures += watch.figures()

    @cached_property
    def _images(self) -> Images:
        images = self._read()
        return replace(
            images,
            train_images=_binary(images.train_images),
            test_images=_binary(images.test_images),
        )


class _Watch:
    """A hook that keeps quantiles of a layer's inputs (n, units), ``TIMES`` times in so many steps.

    Forwards in eval mode do not count.
    """

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // TIMES)
        self.steps = 0
        self.pool: list[Tensor] = []
        self.quantiles: list[Tensor] = []  # (3, units) each

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not layer.training:
            return
        self.steps += 1
        if (self.steps - 1) % self.every >= self.every - min(POOLED, self.every):
            self.pool.append(inputs[0].detach().clone())
        if self.steps % self.every == 0:
            values = torch.cat(self.pool)
            levels = torch.tensor(PERCENT) / 100
            self.quantiles.append(torch.quantile(values, levels, 0))
            self.pool.clear()

    def figures(self) -> list[tuple[str, float]]:
        """``drift``, and the quantiles of unit 0; nothing after a run that broke off early."""
        if len(self.quantiles) < 2:
            return []
        along = torch.stack(self.quantiles)  # (T, 3, units)
        spread = (along[:, -1] - along[:, 0]).mean(0)
        drift = (along.std(0).mean(0) / spread).median()
        found = [("drift", drift.item())] if drift.isfinite() else []
        for time, levels in enumerate(along[..., 0], start=1):
            when = f"at {100 * time * self.every / self.steps:.0f} %"
            found += [
                (f"quantile {percent} {when}", value.item())
                for percent, value in zip(PERCENT, levels, strict=True)
                if value.isfinite()
            ]
        return found


def _binary(images: Tensor) -> Tensor:
    """Images as float32 of 0 and 1: whether a value is above the middle of its range.

    >>> _binary(torch.tensor([0, 127, 128, 255], dtype=torch.uint8))
    tensor([0., 0., 1., 1.])
    """
    middle = 127.5 if images.dtype == torch.uint8 else (images.min() + images.max()) / 2
    return (images > middle).float()
