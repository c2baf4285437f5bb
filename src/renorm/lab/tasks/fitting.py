"""The training loop of supervised tasks, and the two ways a trained net is judged."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.errors import ArgumentError
from renorm.lab import corrections, devices
from renorm.lab.conditions import Sampler, View
from renorm.lab.examples import Examples
from renorm.lab.normalizers import PerGroup, Setting
from renorm.lab.streams import ORDER, TEST, TEST_VIEWS, VIEWS, stream
from renorm.lab.tasks.base import Plan
from renorm.measure import Monitor
from renorm.nn import BatchRenorm, CrossIterationBatchNorm, accumulate
from renorm.nn.normalizers.running import RunningNormalizer
from renorm.report.records import Corrections

POINTS = 10


@dataclass(frozen=True, eq=False)
class Problem:
    """What is fitted and how it is judged.

    Args:
        train, test: examples.
        loss: (outputs, targets) of a batch -> scalar.
        score: (outputs, targets) of all test examples -> number, more is better.
        chunk: test examples in one forward in eval mode.
    """

    train: Examples
    test: Examples
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    chunk: int


@dataclass
class Course:
    """How a training went.

    Args:
        curve: (step, test score in eval mode) after each tenth of the run.
        losses: training losses of the last tenth of the steps.
        seconds: processor time of each step.
        diverged_at: first step with a loss that is not finite, or the last step if the outputs
            of the trained net are not; None if all are.
        corrections: r and d of the batch renorm layers along the run, if there are any.
    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    diverged_at: int | None = None
    corrections: tuple[Corrections, ...] = ()


def sampler_of(plan: Plan) -> Sampler:
    """The sampler of a run."""
    specification = plan.specification
    return plan.condition.build(specification.batch_size, specification.group_size)


def labels_of(examples: Examples) -> Tensor:
    """The classes of examples, all 0 where they have none."""
    labels = examples.labels
    return torch.zeros(len(examples), dtype=torch.long) if labels is None else labels


def normalized(model: nn.Module, plan: Plan, examples: Examples) -> nn.Module:
    """The model with the normalizer of the plan in place of nn.BatchNorm."""
    sampler, specification = sampler_of(plan), plan.specification
    group = sampler.group_size
    if group == specification.batch_size or part_size(plan):
        group = None
    example, _ = examples.batch(torch.arange(min(2, len(examples))))
    model = plan.normalizer.apply(model, Setting(group, specification.steps, example))
    return model.to(plan.ranks.device)


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, problem: Problem, plan: Plan) -> Course:
    """Train in place, with a learning rate that falls to 0 along a cosine.

    With several ranks each trains on its share of every batch. They take the same steps, and
    course and weights are the same in all.
    """
    monitor = corrections.monitor_of(model, plan.specification.steps)
    if monitor is None:
        return _trained(model, optimizer, problem, plan)
    with monitor:
        course = _trained(model, optimizer, problem, plan, monitor)
    course.corrections = corrections.pooled(monitor.observations)
    return course


def _trained(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    plan: Plan,
    monitor: Monitor | None = None,
) -> Course:
    specification, ranks, course = plan.specification, plan.ranks, Course()
    steps, labels, part = specification.steps, labels_of(problem.train), part_size(plan)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    marks = {math.ceil(steps * point / POINTS) for point in range(1, POINTS + 1)}
    late = steps - math.ceil(steps / POINTS)
    order, views = (stream(specification.seed, purpose) for purpose in (ORDER, VIEWS))
    batches = sampler_of(plan).batches(labels, order)
    replicas = devices.replicas(model, _device_count(plan))
    net = ranks.wrap(_InParts(replicas, part).train())
    for step, indices in enumerate(islice(batches, steps), start=1):
        inputs, targets = _share(problem.train, indices, plan, views)
        started = time.process_time()
        with _one_step_of_the_statistics(model, part, plan):
            loss = problem.loss(net(inputs), targets)
            value = ranks.mean(loss)
            if not math.isfinite(value):
                course.diverged_at = step
                return course
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        schedule.step()
        course.seconds.append(time.process_time() - started)
        if monitor is not None:
            monitor.step()
        if step > late:
            course.losses.append(value)
        if step in marks:
            score = ranks.first(lambda: _score(devices.joined(replicas), problem, plan))
            if score is None:
                course.diverged_at = step
                return course
            course.curve.append((step, score))
    if len(replicas) > 1:
        devices.average_statistics(replicas)
    return course


def _device_count(plan: Plan) -> int:
    specification = plan.specification
    return specification.batch_size // specification.group_size if plan.condition.devices else 1


class _InParts(nn.Module):
    """The training forward of a batch as one call, whatever parts it is done in.

    DistributedDataParallel overwrites running statistics before a forward, which must not happen
    between the forwards that one backward goes through.
    """

    def __init__(self, replicas: Sequence[nn.Module], part: int | None) -> None:
        super().__init__()
        self.replicas, self.part = nn.ModuleList(replicas), part

    def forward(self, inputs: Tensor) -> Tensor:
        if len(self.replicas) == 1:
            return forward(self.replicas[0], inputs, self.part)
        parts = zip(self.replicas, inputs.chunk(len(self.replicas)), strict=True)
        return torch.cat([forward(replica, part, None) for replica, part in parts])


def _share(
    examples: Examples, indices: Tensor, plan: Plan, views: Generator
) -> tuple[Tensor, Tensor]:
    """The rank's part of a training batch; a view is drawn for the whole, as in one process."""
    ranks, view = plan.ranks, plan.condition.train_view
    if view is None:
        inputs, targets = examples.batch(ranks.share(indices))
    else:
        inputs, targets = examples.batch(indices)
        inputs = ranks.share(view(inputs, plan.specification.group_size, views))
        targets = ranks.share(targets)
    return inputs.to(ranks.device), targets.to(ranks.device)


def _score(model: nn.Module, problem: Problem, plan: Plan) -> float | None:
    """The score on the test examples in eval mode; None if an output is not finite."""
    return judged(problem, *evaluate(model, problem, plan))


def judged(problem: Problem, outputs: Tensor, targets: Tensor) -> float | None:
    """The score as a plain number; None if an output is not finite.

    Raises:
        ArgumentError: the score of finite outputs is not finite.
    """
    if not outputs.isfinite().all():
        return None
    score = float(problem.score(outputs, targets))
    if not math.isfinite(score):
        raise ArgumentError(
            f"A score is a finite number, more is better, got {score} for finite outputs "
            f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}. Mend score() where it "
            "divides by zero or overflows."
        )
    return score


def forward(model: nn.Module, inputs: Tensor, part: int | None) -> Tensor:
    """The outputs for a batch, in one forward or ``part`` examples at a time."""
    outputs = [model(some) for some in (inputs.split(part) if part else [inputs])]
    if not isinstance(outputs[0], Tensor):
        raise ArgumentError(
            "The outputs of a model are one tensor (n, ...), since those of several batches are "
            f"put together for the score, got a {type(outputs[0]).__name__}. Return from model() "
            "a module that calls yours and picks or joins what loss and score need."
        )
    return torch.cat(outputs) if part else outputs[0]


def evaluate(model: nn.Module, problem: Problem, plan: Plan) -> tuple[Tensor, Tensor]:
    """Outputs and targets of all test examples in eval mode; leaves the model in train mode."""
    specification, test = plan.specification, problem.test
    generator = stream(specification.seed, TEST_VIEWS)
    outputs, answers = [], []
    model.eval()
    with torch.no_grad():
        for indices in torch.arange(len(test)).split(problem.chunk):
            inputs, targets = test.batch(indices)
            inputs = _viewed(inputs, plan.condition.test_view, specification.group_size, generator)
            outputs.append(model(inputs.to(plan.ranks.device)).cpu())
            answers.append(targets)
    model.train()
    return torch.cat(outputs), torch.cat(answers)


def both_modes(model: nn.Module, problem: Problem, plan: Plan) -> tuple[float | None, float | None]:
    """The score on test batches composed by the condition: in train mode, and in eval mode.

    None for a mode whose outputs are not finite.

    There are as many batches as cover the test examples once, however often a batch repeats one.
    Each is seen by a copy of the model with its normalizers in train mode, so all meet the running
    statistics that the training left; ``model`` is put in eval mode and else stays as it is. With
    several ranks each is given its share of a batch, as in training, and the running statistics
    are those of rank 0.
    """
    test, specification, ranks = problem.test, plan.specification, plan.ranks
    draw = stream(specification.seed, TEST)
    batches = sampler_of(plan).batches(labels_of(test), draw)
    first = next(batches)
    drawn = [first, *islice(batches, math.ceil(len(test) / len(first.unique())) - 1)]
    views = stream(specification.seed, TEST_VIEWS)
    in_train, in_eval, answers = [], [], []
    ranks.align(model)
    model.eval()
    with torch.no_grad():
        for indices in drawn:
            inputs, targets = test.batch(indices)
            inputs = _viewed(inputs, plan.condition.test_view, specification.group_size, views)
            inputs = ranks.share(inputs).to(ranks.device)
            trained = forward(_by_batch_statistics(copy.deepcopy(model)), inputs, part_size(plan))
            in_train.append(ranks.joined(trained).cpu())
            in_eval.append(ranks.joined(model(inputs)).cpu())
            answers.append(targets)
    targets = torch.cat(answers)
    return (
        judged(problem, torch.cat(in_train), targets),
        judged(problem, torch.cat(in_eval), targets),
    )


def _by_batch_statistics(model: nn.Module) -> nn.Module:
    """The model in eval mode but for its normalizers: dropout is no part of the gap."""
    model.train()  # as in training: a model may keep layers in eval mode
    kinds = _BatchNorm | RunningNormalizer | PerGroup
    norms = [m for m in model.modules() if m.training and isinstance(m, kinds)]
    model.eval()
    for norm in norms:
        norm.training = True
    return model


def part_size(plan: Plan) -> int | None:
    """Examples in a forward, where a batch needs several; None for one forward."""
    specification = plan.specification
    size = sampler_of(plan).group_size
    apart = plan.condition.accumulate or plan.condition.devices or plan.normalizer.by_forward
    return size if apart and size < specification.batch_size else None


def _viewed(inputs: Tensor, view: View | None, group: int, generator: Generator) -> Tensor:
    return inputs if view is None else view(inputs, group, generator)


def _one_step_of_the_statistics(
    model: nn.Module, part: int | None, plan: Plan
) -> AbstractContextManager[None]:
    if part is None or plan.condition.devices:
        return nullcontext()
    ours = any(isinstance(m, BatchRenorm | CrossIterationBatchNorm) for m in model.modules())
    return accumulate(model) if ours else nullcontext()
