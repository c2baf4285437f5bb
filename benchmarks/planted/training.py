"""Training for seconds, and what came of it."""

import copy
from collections.abc import Callable, Iterable
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from planted.case import Loss, classified
from planted.ground import Ground
from planted.nets import Plain
from renorm.lab.isolation import isolated

STEPS, BATCH, LR = 250, 32, 0.1
M = TypeVar("M", bound=nn.Module)


def fit(
    model: M,
    batches: Iterable[Any],
    steps: int = STEPS,
    lr: float = LR,
    *,
    loss: Loss = classified,
    mode: Callable[[M], object] = nn.Module.train,
    after: Callable[[], object] | None = None,
) -> M:
    """Train in place by SGD with momentum and a cosine of the learning rate.

    Args:
        model: changed.
        batches: of which the first entry is the input.
        steps: one a batch.
        lr: at the first of them.
        loss: ``(output, batch) -> scalar``.
        mode: puts the model into the mode that its user trains in.
        after: called after each step.

    Returns:
        The model, in train mode.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    mode(model)
    for batch in islice(batches, steps):
        optimizer.zero_grad()
        loss(model(batch[0]), batch).backward()
        optimizer.step()
        schedule.step()
        if after is not None:
            after()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of the images that are classified rightly in eval mode; the mode stays."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    hits = (model(images).argmax(1) == labels).double().mean()
    for module, mode in training.items():
        module.training = mode
    return 100 * float(hits)


def tested(model: nn.Module, ground: Ground) -> float:
    """That, of the images for testing."""
    return accuracy(model, ground.images.test_images, ground.images.test_labels)


@cache
def _healthy(ground: Ground) -> Plain:
    with isolated(ground.seed):
        return fit(ground.net(), ground.batches(BATCH))


def healthy(ground: Ground) -> Plain:
    """A plain net that was trained as it should be, in train mode; a copy of its own."""
    return copy.deepcopy(_healthy(ground))


@cache
def well(ground: Ground) -> float:
    """The accuracy of that."""
    return tested(_healthy(ground), ground)
