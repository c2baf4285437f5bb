"""One run of ``small_batches.py``: a residual net that is trained by virtual workers.

Several devices that each normalize n examples, and average their gradients, are emulated in one
process. All workers have the same Parameters; each has the normalization layers' running statistics
and the history of past iterations for itself. A step takes each worker's forward and backward, on
examples of its own, and one update by the gradient of the mean loss.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from fashion_mnist import CLASSES, SIDE
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import renorm
from renorm import limits
from renorm.errors import ArgumentError
from renorm.lab.conditions import Shuffled
from renorm.lab.data import Images
from renorm.lab.devices import average_statistics, replicas
from renorm.lab.isolation import isolated
from renorm.lab.models.resnet import Block
from renorm.lab.tasks.supervised import MOMENTUM, WEIGHT_DECAY
from renorm.names import known

WIDTHS = (16, 32, 64)
CHANNEL_GROUPS = 8
# batch norm's, for batch renorm: with its own 0.01 the running statistics need 300 updates to
# settle, and the limits open after 5 % of a run
STATISTICS_MOMENTUM = 0.1
_AT_ONCE = 1000  # test images


@dataclass(frozen=True)
class Run:
    """Everything a result depends on, apart from the data and the versions of the code.

    Args:
        normalizer: name in ``NORMALIZERS``.
        norm_batch: examples that a worker normalizes together.
        seed: of the initial weights and of the data order.
        steps: gradient steps.
        batch: examples of a gradient step.
        lr: learning rate at the start; it falls to 0 along a cosine.
        window: iterations in cross-iteration statistics, the current one included; 0 where there
            are none.
        burn_in: first iterations that use the statistics of their own batch; likewise.
        sample: of ``cbn_sampled``; 0 for the others.
    """

    normalizer: str
    norm_batch: int
    seed: int
    steps: int
    batch: int
    lr: float
    window: int = 0
    burn_in: int = 0
    sample: int = 0

    def __post_init__(self) -> None:
        known("normalizer", [self.normalizer], NORMALIZERS)
        lowest = {"norm_batch": 1, "seed": 0, "steps": 1, "batch": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ArgumentError(
                    f"{name} must be at least {least}, got {getattr(self, name)}. Give more."
                )
        if self.batch % self.norm_batch:
            raise ArgumentError(
                f"Workers share a gradient batch equally, so its size is a multiple of the norm "
                f"batch, got {self.batch} and {self.norm_batch}. Change one of them."
            )
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ArgumentError(f"lr is the learning rate, above 0, got {self.lr}. Give 0.1.")


@dataclass(frozen=True)
class Figures:
    """What a run found.

    Args:
        accuracy: fraction of the test images that are classified rightly in eval mode; None if
            the run diverged.
        loss: in training, the mean over the last tenth of the steps; likewise.
        diverged_at: the first step whose loss is not finite; None if there is none.
        seconds: of processor time.
    """

    accuracy: float | None
    loss: float | None
    diverged_at: int | None
    seconds: float

    def __post_init__(self) -> None:
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ArgumentError(f"An accuracy is a fraction, 0 to 1, got {self.accuracy}.")
        if (self.accuracy is None) != (self.diverged_at is not None):
            raise ArgumentError(
                f"A run has either an accuracy or a step at which it diverged, got "
                f"{self.accuracy} and {self.diverged_at}."
            )


def _batch_norm(model: nn.Module, run: Run) -> nn.Module:
    return model


def _batch_renorm(model: nn.Module, run: Run) -> nn.Module:
    return renorm.convert(model, momentum=STATISTICS_MOMENTUM, limits=limits.over(run.steps))


def _group_norm(model: nn.Module, run: Run) -> nn.Module:
    def make(layer: _BatchNorm) -> nn.Module:
        return nn.GroupNorm(CHANNEL_GROUPS, layer.num_features)

    return renorm.convert(model, to=make)


def _cross_iteration(model: nn.Module, run: Run) -> nn.Module:
    options = dict(CROSS_ITERATION[run.normalizer])
    if run.normalizer == SAMPLED:
        options["sample"] = run.sample
    if run.normalizer == LIMITED:
        options["limits"] = limits.over(run.steps)
    return renorm.convert(
        model,
        to="cross_iteration",
        window=run.window,
        burn_in=run.burn_in,
        example=torch.zeros(2, 1, SIDE, SIDE),
        **options,
    )


SAMPLED, LIMITED = "cbn_sampled", "cbn_limits"
CROSS_ITERATION: dict[str, dict[str, Any]] = {
    "cbn": {"compensation": "first_order"},
    "cbn_exact": {"compensation": "exact"},
    SAMPLED: {"compensation": "first_order"},
    "cbn_uncompensated": {"compensation": "none"},
    LIMITED: {"compensation": "first_order"},
}
NORMALIZERS: dict[str, Callable[[nn.Module, Run], nn.Module]] = {
    "batch_norm": _batch_norm,
    "batch_renorm": _batch_renorm,
    "group_norm": _group_norm,
    **dict.fromkeys(CROSS_ITERATION, _cross_iteration),
}


def build(run: Run) -> nn.Module:
    """The net of a run, its weights drawn from torch's generator before any layer is replaced.

    One residual block a stage: 9 convolutions, each with a norm, and a linear layer; the longest
    path has 8 of them. It is the ResNet-8 of He et al. 2016 (arXiv 1512.03385), section 4.2, behind
    the stem of its table 1, which halves the resolution twice: of an image, statistics see
    14 x 14 positions in the stem, then 7 x 7, 4 x 4 and 2 x 2.
    """
    inside = WIDTHS[0]
    layers: list[nn.Module] = [
        nn.Conv2d(1, inside, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    for outside in WIDTHS:
        layers.append(Block(inside, outside, 1 if outside == inside else 2))
        inside = outside
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, CLASSES)]
    return NORMALIZERS[run.normalizer](nn.Sequential(*layers, *head), run)


def backward(workers: Sequence[nn.Module], images: Tensor, labels: Tensor) -> float:
    """Add the gradient of a batch's mean loss, equal parts of it through each worker; the loss."""
    total, count = 0.0, len(workers)
    parts = zip(workers, images.chunk(count), labels.chunk(count), strict=True)
    for worker, x, target in parts:
        loss = F.cross_entropy(worker(x), target) / count
        loss.backward()
        total += loss.item()
    return total


def train(run: Run, task: Images) -> Figures:
    """Train and test one net; the same run gives the same figures, whatever ran before.

    SGD with momentum 0.9, weight decay 5e-4 and a learning rate that falls to 0 along a cosine.
    A loss that is not finite ends the run.
    """
    started = time.process_time()
    with isolated(run.seed):
        model = build(run)
        workers = replicas(model, run.batch // run.norm_batch)
        order = Generator().manual_seed(run.seed)
        drawn = Shuffled(run.batch, run.batch).batches(task.train_labels, order)
        losses, diverged_at = _train(workers, task, drawn, run)
        accuracy = loss = None
        if diverged_at is None:
            average_statistics(workers)
            accuracy = _accuracy(model, task)
            late = losses[-math.ceil(run.steps / 10) :]
            loss = math.fsum(late) / len(late)
    return Figures(accuracy, loss, diverged_at, round(time.process_time() - started, 3))


def _train(
    workers: Sequence[nn.Module], task: Images, batches: Iterator[Tensor], run: Run
) -> tuple[list[float], int | None]:
    """Train in place: the loss of each step, and the diverging step."""
    parameters = workers[0].parameters()
    optimizer = torch.optim.SGD(parameters, run.lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.steps)
    losses: list[float] = []
    for step, indices in enumerate(islice(batches, run.steps), start=1):
        optimizer.zero_grad()
        losses.append(backward(workers, task.train_images[indices], task.train_labels[indices]))
        if not math.isfinite(losses[-1]):
            return losses, step
        optimizer.step()
        schedule.step()
    return losses, None


def _accuracy(model: nn.Module, task: Images) -> float:
    """Fraction of the test images that are classified rightly in eval mode."""
    model.eval()
    parts = zip(task.test_images.split(_AT_ONCE), task.test_labels.split(_AT_ONCE), strict=True)
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in parts)
    return hits / len(task.test_labels)
