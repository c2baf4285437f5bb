"""One training run: a specification in, a record out."""

import copy
import math
import time
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from renorm.lab.conditions import CONDITIONS, Sampler
from renorm.lab.environment import describe
from renorm.lab.isolation import isolated
from renorm.lab.models import ConvNet
from renorm.lab.normalizers import NORMALIZERS
from renorm.lab.tasks import TASKS, Task
from renorm.report.records import Record, Specification

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
POINTS = 10
# the weights, the order of training and the test batches each draw from a stream of their own
ORDER_STREAM, TEST_STREAM = 2**32, 2**33


def run(specification: Specification) -> Record:
    """Train and test one net; the same specification gives the same record, whatever ran before.

    SGD with momentum 0.9, weight decay 5e-4 and a learning rate that falls to 0 along a cosine.
    A loss that is not finite ends the run, and the record says at which step.

    Args:
        specification: what to run, with names from the tables of this package.
    """
    seed = specification.seed
    task = TASKS[specification.task]()
    sampler = sampler_of(specification)
    started = time.process_time()
    with isolated(seed):
        model = build(specification, task.classes)
        order = torch.Generator().manual_seed(ORDER_STREAM + seed)
        batches = sampler.batches(task.train_labels, order)
        curve, losses, diverged_at = _train(model, task, batches, specification)
        if diverged_at is None and not _finite(model, task):
            diverged_at = specification.steps
        accuracy = train_mode = eval_mode = loss = None
        if diverged_at is None:
            accuracy = curve[-1][1]
            draw = torch.Generator().manual_seed(TEST_STREAM + seed)
            train_mode, eval_mode = both_modes(model, task, sampler, draw)
            loss = math.fsum(losses) / len(losses)
    return Record(
        specification,
        accuracy,
        train_mode,
        eval_mode,
        loss,
        tuple(curve),
        diverged_at,
        round(time.process_time() - started, 3),
        describe(),
    )


def build(specification: Specification, classes: int) -> ConvNet:
    """The net of a run, its weights drawn from torch's generator."""
    normalizer = NORMALIZERS[specification.normalizer]
    group, steps = sampler_of(specification).group_size, specification.steps
    return ConvNet(lambda channels: normalizer.build(channels, group, steps), classes)


def sampler_of(specification: Specification) -> Sampler:
    """The sampler of a run."""
    condition = CONDITIONS[specification.condition]
    return condition.build(specification.batch_size, specification.group_size)


def both_modes(
    model: nn.Module, task: Task, sampler: Sampler, generator: Generator
) -> tuple[float, float]:
    """Accuracy on test batches composed by the condition: in train mode, and in eval mode.

    There are as many batches as cover the test images once. Each is seen in train mode by a copy
    of the model, so all meet the running statistics that the training left; ``model`` is put
    in eval mode and else stays as it is.
    """
    batches = sampler.batches(task.test_labels, generator)
    first = next(batches)
    drawn = [first, *islice(batches, math.ceil(len(task.test_labels) / len(first)) - 1)]
    model.eval()
    hits = {True: 0, False: 0}
    with torch.no_grad():
        for indices in drawn:
            images, labels = task.test_images[indices], task.test_labels[indices]
            for training in hits:
                judged = copy.deepcopy(model).train() if training else model
                hits[training] += int((judged(images).argmax(1) == labels).sum())
    total = sum(map(len, drawn))
    return hits[True] / total, hits[False] / total


def _train(
    model: nn.Module, task: Task, batches: Iterator[Tensor], specification: Specification
) -> tuple[list[tuple[int, float]], list[float], int | None]:
    """Train in place: the accuracy curve, the losses of the last tenth, the diverging step."""
    steps = specification.steps
    optimizer = torch.optim.SGD(
        model.parameters(), specification.lr, MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    marks = {math.ceil(steps * part / POINTS) for part in range(1, POINTS + 1)}
    late = steps - math.ceil(steps / POINTS)
    curve: list[tuple[int, float]] = []
    losses: list[float] = []
    for step, indices in enumerate(islice(batches, steps), start=1):
        loss = F.cross_entropy(model(task.train_images[indices]), task.train_labels[indices])
        value = loss.item()
        if not math.isfinite(value):
            return curve, losses, step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step > late:
            losses.append(value)
        if step in marks:
            curve.append((step, _accuracy(model, task)))
    return curve, losses, None


def _accuracy(model: nn.Module, task: Task) -> float:
    """Fraction of test images classified rightly in eval mode; leaves the model in train mode."""
    hits = _scores(model, task).argmax(1) == task.test_labels
    return int(hits.sum()) / len(hits)


def _finite(model: nn.Module, task: Task) -> bool:
    return bool(_scores(model, task).isfinite().all())


def _scores(model: nn.Module, task: Task) -> Tensor:
    model.eval()
    with torch.no_grad():
        scores = model(task.test_images)
    model.train()
    return scores
