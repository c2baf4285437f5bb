"""Training that is looked at on the way: how smooth the loss is, and how the layers shift."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, repeat
from statistics import median
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.lab.data import Images
from renorm.lab.isolation import isolated
from renorm.lab.normalizers import Setting
from renorm.lab.streams import ORDER, stream
from renorm.lab.tasks.base import Metric, Outcome, Plan, Task
from renorm.lab.tasks.classification import Classification
from renorm.lab.tasks.fitting import both_modes, evaluate, judged, labels_of, normalized, sampler_of
from renorm.measure import covariate_shift, landscape, step_range
from renorm.measure.records import CovariateShift, Landscape

CEILING = 1e30  # of a figure: records keep no infinity
LOOKS, APART = 20, 5  # along a run, and the least steps from one to the next
SHIFT_EVERY = 2  # looks, since a covariate shift costs a pass for each layer

Batch = tuple[Tensor, Tensor]


class Course(NamedTuple):
    """How a training went.

    Args:
        losses: of all steps.
        figures: the medians over all looks, see ``Looks``.
        diverged_at: first step with a loss or a gradient that is not finite, or None.
    """

    losses: list[float]
    figures: tuple[tuple[str, float], ...]
    diverged_at: int | None


class Looks:
    """Looks at a model along its training, and their medians.

    The figures are ``loss range``, the largest loss along the gradient less the least one;
    ``predictiveness``, the largest distance of a gradient; ``beta``, the effective smoothness;
    and of the layers after the first ``shift``, the distance of the shifted gradient, ``relative
    shift``, that over the length of the gradient, and ``shift cosine``, each the median over the
    layers. With ``worst`` before the first two names, it is the largest of all looks in place of
    the median.

    Args:
        sizes: step sizes along the gradient.
        lr: of the plain step that the covariate shift is of.
    """

    def __init__(self, sizes: tuple[float, ...], lr: float) -> None:
        self._sizes, self._lr = sizes, lr
        self._landscapes: list[Landscape] = []
        self._shifts: list[tuple[CovariateShift, ...]] = []

    def take(self, model: nn.Module, batch: Batch, loss: Callable[[Any, Any], Tensor]) -> None:
        """Look at the model as it is."""
        if len(self._landscapes) % SHIFT_EVERY == 0:
            self._shifts.append(covariate_shift(model, batch, loss, self._lr))
        self._landscapes.append(landscape(model, batch, loss, step_sizes=self._sizes))

    @property
    def figures(self) -> tuple[tuple[str, float], ...]:
        """Their names and values, none without a look."""
        if not self._landscapes:
            return ()
        ranges = [_width(*one.loss_range) for one in self._landscapes]
        distances = [max(one.distances) for one in self._landscapes]
        shifts = [self._of_layers(looked) for looked in self._shifts]
        found = {
            "loss range": median(ranges),
            "predictiveness": median(distances),
            "beta": median(one.smoothness or 0.0 for one in self._landscapes),
            "worst loss range": max(ranges),
            "worst predictiveness": max(distances),
            "shift": median(distance for distance, _, _ in shifts),
            "relative shift": median(ratio for _, ratio, _ in shifts),
            "shift cosine": median(cosine for _, _, cosine in shifts),
        }
        return tuple((name, min(value, CEILING)) for name, value in found.items())

    def _of_layers(self, looked: tuple[CovariateShift, ...]) -> tuple[float, float, float]:
        """Distance, relative distance and cosine of the median layer, without the first one."""
        later = [one for one in looked[1:] if one.norm > 0]
        if not later:
            return 0.0, 0.0, 1.0
        ratios = [one.distance / one.norm for one in later]
        cosines = [one.cosine or 0.0 for one in later]
        return median(one.distance for one in later), median(ratios), median(cosines)


def _width(low: float, high: float) -> float:
    return high - low if low < math.inf else math.inf


def descend(
    model: nn.Module,
    batches: Iterator[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    lr: float,
    sizes: tuple[float, ...],
) -> Course:
    """Train in place by plain gradient descent at a constant rate, looking on the way.

    Args:
        model: in any mode; afterwards in train mode.
        batches: inputs and targets.
        loss: (outputs, targets) -> scalar.
        steps: at least 1.
        lr: learning rate.
        sizes: step sizes that the landscape is looked at along.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr)
    looks, losses, every = Looks(sizes, lr), [], max(APART, steps // LOOKS)
    model.train()
    for step, (inputs, targets) in enumerate(islice(batches, steps), start=1):
        value = loss(model(inputs), targets)
        optimizer.zero_grad()
        value.backward()
        losses.append(value.item())
        if not (math.isfinite(losses[-1]) and _finite(model)):
            return Course(losses, looks.figures, step)
        if step % every == 1:
            looks.take(model, (inputs, targets), lambda output, batch: loss(output, batch[1]))
        optimizer.step()
    return Course(losses, looks.figures, None)


def _on(device: torch.device, batches: Iterator[Batch]) -> Iterator[Batch]:
    return ((inputs.to(device), targets.to(device)) for inputs, targets in batches)


def _finite(model: nn.Module) -> bool:
    """Whether the gradient is, also when it is squared and summed up."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return bool(torch.nn.utils.get_total_norm(gradients).isfinite())


class Smoothness(Classification):
    """Labelled images and a plain net, trained by SGD without momentum at a constant rate.

    Twenty times along the run, but not more often than every fifth step,
    ``renorm.measure.landscape`` looks at the batch of the step, and every second time
    ``covariate_shift``; ``Outcome.figures`` has what ``Looks`` makes of it. Steps along the
    gradient are up to 0.4 long, whatever the learning rate.

    Args:
        images: reads the data set; called once, when they are first needed.
        model: name of the net.
        judged: test images that a net is judged by, at most.
    """

    steps: ClassVar[int] = 400
    lr: ClassVar[float] = 0.03
    batch_size: ClassVar[int] = 64
    normalizers: ClassVar[tuple[str, ...]] = ("batch_norm", "none")
    conditions: ClassVar[tuple[str, ...]] = ("iid",)
    data_parallel: ClassVar[bool] = False
    sizes: ClassVar[tuple[float, ...]] = step_range(0.1, count=4)

    def __init__(self, images: Callable[[], Images], model: str, judged: int = 10_000) -> None:
        super().__init__(images, model)
        self.judged = judged  # pyright: ignore[reportAttributeAccessIssue]

    def check(self, plan: Plan) -> None:
        """Refuse a condition with groups, and what does not fit the data.

        Raises:
            ArgumentError: with what is allowed.
        """
        _check_condition(plan)
        super().check(plan)

    def train(self, plan: Plan) -> Outcome:
        """Train and look, then test."""
        specification, problem = plan.specification, self.problem(plan)
        model = normalized(self._new_model(), plan, problem.train)
        order = stream(specification.seed, ORDER)
        drawn = sampler_of(plan).batches(labels_of(problem.train), order)
        course = descend(
            model,
            _on(plan.ranks.device, map(problem.train.batch, drawn)),
            problem.loss,
            specification.steps,
            specification.lr,
            self.sizes,
        )
        if course.diverged_at is not None:
            return _outcome(course, None, specification.steps)
        score = judged(problem, *evaluate(model, problem, plan))
        modes = both_modes(model, problem, plan)
        return replace(
            _outcome(course, score, specification.steps),
            train_mode_score=modes[0],
            eval_mode_score=modes[1],
        )


class DeepLinear(Task):
    """A deep linear net on Gaussian data, by gradient descent on all examples at once.

    Targets are a random linear map of the inputs; the loss is the mean squared error. There is
    neither a nonlinearity nor noise of the gradient. The batch is the data set. Looks are as in
    ``Smoothness``, with steps from 1/100 to 30 times the learning rate.

    Args:
        depth: linear layers, at least 2; behind each but the last is a norm.
        width: of all layers.
    """

    metric: ClassVar[Metric] = Metric(
        "fit", "% of the targets' mean square that the net explains in train mode"
    )
    steps: ClassVar[int] = 400
    lr: ClassVar[float] = 0.01
    batch_size: ClassVar[int] = 256
    normalizers: ClassVar[tuple[str, ...]] = ("batch_norm", "none")
    conditions: ClassVar[tuple[str, ...]] = ("iid",)

    def __init__(self, depth: int = 25, width: int = 32) -> None:
        self._depth, self._width = depth, width

    def check(self, plan: Plan) -> None:
        """Refuse a condition with groups, and a normalizer that cannot stand in the net.

        Raises:
            ArgumentError: with what is allowed.
        """
        _check_condition(plan)
        with isolated(plan.specification.seed):
            plan.normalizer.apply(
                self._net(), Setting(None, plan.specification.steps, torch.zeros(2, self._width))
            )

    def train(self, plan: Plan) -> Outcome:
        """Fit the data and look."""
        specification = plan.specification
        draw, width = stream(specification.seed, ORDER), self._width
        inputs = torch.randn(specification.batch_size, width, generator=draw)
        targets = inputs @ torch.randn(width, width, generator=draw) / math.sqrt(width)
        setting = Setting(None, specification.steps, inputs[:2])
        model = plan.normalizer.apply(self._net(), setting).to(plan.ranks.device)
        lr = specification.lr
        course = descend(
            model,
            _on(plan.ranks.device, repeat((inputs, targets))),
            nn.functional.mse_loss,
            specification.steps,
            lr,
            step_range(lr, "linear", 6),
        )
        score = None
        if course.diverged_at is None:
            score = 1 - course.losses[-1] / float(targets.square().mean())
        return _outcome(course, score, specification.steps)

    def _net(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(self._depth):
            layer = nn.Linear(self._width, self._width, bias=False)
            nn.init.normal_(layer.weight, std=1 / math.sqrt(self._width))
            layers += [layer, nn.BatchNorm1d(self._width)]
        return nn.Sequential(*layers[:-1])


def _check_condition(plan: Plan) -> None:
    if plan.condition.name != "iid":
        raise ArgumentError(
            f"The task {plan.specification.task!r} looks at the loss of whole batches, so it has "
            f"only the condition 'iid', got {plan.condition.name!r}."
        )


def _outcome(course: Course, score: float | None, steps: int) -> Outcome:
    at = course.diverged_at
    if score is None:
        return Outcome(None, figures=course.figures, diverged_at=steps if at is None else at)
    late = course.losses[-math.ceil(steps / 10) :]
    return Outcome(
        score,
        loss=math.fsum(late) / len(late),
        curve=((steps, score),),
        figures=course.figures,
    )
