"""Tasks of examples with targets."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from math import fsum
from statistics import median
from typing import ClassVar
from weakref import WeakSet

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from renorm.errors import ArgumentError
from renorm.lab.examples import Examples, split
from renorm.lab.isolation import isolated
from renorm.lab.tasks.base import Metric, Outcome, Plan, Task
from renorm.lab.tasks.fitting import (
    Problem,
    both_modes,
    fit,
    forward,
    labels_of,
    normalized,
    part_size,
    sampler_of,
)

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
HELD_OUT_EVERY = 5
_USED: WeakSet[nn.Module] = WeakSet()  # layers that runs of this process have trained


class Supervised(Task):
    """A model, examples for training and testing, a loss and a score.

    ``model`` and ``data`` are to be written; the rest is for classification and may be
    overridden. The model has nn.BatchNorm layers where the normalizers to be compared shall stand.

    >>> from renorm.lab.examples import TensorExamples
    >>> class Parity(Supervised):
    ...     def data(self):
    ...         bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    ...         labels = bits.sum(1) % 2
    ...         return split(TensorExamples(bits.float(), labels, labels), every=4)
    ...
    ...     def model(self):
    ...         return nn.Sequential(
    ...             nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)
    ...         )
    >>> train, test = Parity().data()
    >>> len(train), len(test)
    (192, 64)
    """

    metric: ClassVar[Metric] = Metric("accuracy", "% of test examples classified rightly")
    chunk: ClassVar[int] = 1000
    data_parallel: ClassVar[bool] = True

    @abstractmethod
    def data(self) -> tuple[Examples, Examples]:
        """The examples for training and those for testing, the same at every call."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model, its weights drawn from torch's generator."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, a scalar, the mean over its examples: here cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """How good the outputs for all test examples are: here the fraction classified rightly.

        More is better; ``metric`` says what it is called, and whether it is a fraction.
        """
        return int((outputs.argmax(1) == targets).sum()) / len(targets)

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """What moves the weights: here SGD with momentum 0.9 and weight decay 5e-4."""
        return torch.optim.SGD(model.parameters(), lr, MOMENTUM, weight_decay=WEIGHT_DECAY)

    @contextmanager
    def watching(self, model: nn.Module, plan: Plan) -> Iterator[list[tuple[str, float]]]:
        """What is measured beside the score: (name, finite value), complete when training ends.

        The model is trained inside, and must be left as it is: here nothing is looked at.
        """
        yield []

    def problem(self, plan: Plan) -> Problem:
        """What a run trains on and what it is judged by.

        For a search on a validation split a fifth of each class is held out of the training
        examples; the test examples are not looked at.
        """
        # what data() draws is the same in every run, and leaves the weights as they are, whether it
        # draws anew or keeps what it drew in an earlier one
        with isolated(0):
            train, test = self.data()
        if plan.specification.split == "validation":
            train, test = split(train, HELD_OUT_EVERY)
        return Problem(train, test, self.loss, self.score, self.chunk)

    def check(self, plan: Plan) -> None:
        """Draw one batch from each split, and do a forward and a loss, to see that they can be.

        Raises:
            ArgumentError: the data are no examples, classes or images are needed and not there,
                sizes do not fit, groups of one example leave a layer one value a channel to take
                statistics of, or what the model or the loss gives is no tensor of the kind needed.
        """
        problem, condition, task = self.problem(plan), plan.condition, plan.specification.task
        _check_kinds(problem)
        if condition.devices and plan.specification.ranks > 1:
            raise ArgumentError(
                f"The condition {condition.name!r} has its devices in one process, got "
                f"{plan.specification.ranks} processes. Start it without torchrun."
            )
        for examples in (problem.train, problem.test):
            if condition.needs_classes and examples.labels is None:
                raise ArgumentError(
                    f"The condition {condition.name!r} puts batches together by class, but the "
                    f"examples of {task!r} have no labels. Give labels, or choose conditions "
                    "without classes: --conditions iid microbatch, or in the task "
                    'conditions = ("iid", "microbatch").'
                )
            drawn = next(sampler_of(plan).batches(labels_of(examples), Generator()))
            inputs, _ = examples.batch(drawn[:1])
            if condition.needs_images and inputs.dim() != 4:
                raise ArgumentError(
                    f"The condition {condition.name!r} changes images (N, C, H, W), but inputs of "
                    f"{task!r} have the shape {tuple(inputs.shape)}. Choose another condition."
                )
        self._try(problem, plan)

    def _try(self, problem: Problem, plan: Plan) -> None:
        """One forward and one loss as in training, so that a mistake is found before any run."""
        single = sampler_of(plan).group_size == 1
        order = sampler_of(plan).batches(labels_of(problem.train), Generator())
        with isolated(plan.specification.seed), torch.no_grad():
            model = normalized(self.model(), plan, problem.train).train()
            inputs, targets = problem.train.batch(next(order))
            try:
                outputs = forward(model, inputs, part_size(plan))
            except ValueError as error:  # torch's batch norm and ours name it in the same words
                if not single or "value per channel" not in str(error):
                    raise
                raise ArgumentError(
                    f"{plan.normalizer.name!r} cannot take statistics of a group of one example "
                    f"in the model of {plan.specification.task!r}: a layer finds one value per "
                    "channel there. Give a group size of at least 2, or choose a normalizer that "
                    "does not mix examples, such as group_norm."
                ) from error
            loss = self.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.dim() > 0:
            shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
            raise ArgumentError(
                f"loss() of {type(self).__name__} returns one number as a tensor, the mean over a "
                f"batch, got {type(loss).__name__}{shape}. End it in .mean()."
            )

    def _new_model(self) -> nn.Module:
        """The model of a run.

        Raises:
            ArgumentError: a layer of it is that of an earlier run, and so trained already.
        """
        model = self.model()
        own = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(False))]
        for layer in own:
            if layer in _USED:
                raise ArgumentError(
                    f"model() of {type(self).__name__} returned a model with a "
                    f"{type(layer).__name__} that an earlier run has trained. Build a new model "
                    "in model(), at every call, or return a copy.deepcopy of the one you keep."
                )
        _USED.update(own)
        return model

    def train(self, plan: Plan) -> Outcome:
        """Train with a learning rate that falls to 0 along a cosine, then test."""
        problem = self.problem(plan)
        model = normalized(self._new_model(), plan, problem.train)
        with self.watching(model, plan) as figures:
            course = fit(model, self.optimizer(model, plan.specification.lr), problem, plan)
        curve = tuple(course.curve)
        if course.diverged_at is not None:
            return Outcome(
                None,
                curve=curve,
                corrections=course.corrections,
                figures=tuple(figures),
                diverged_at=course.diverged_at,
            )
        train_mode, eval_mode = both_modes(model, problem, plan)
        return Outcome(
            score=curve[-1][1],
            train_mode_score=train_mode,
            eval_mode_score=eval_mode,
            loss=fsum(course.losses) / len(course.losses),
            curve=curve,
            corrections=course.corrections,
            figures=tuple(figures),
            step_seconds=median(course.seconds),
        )


def _check_kinds(problem: Problem) -> None:
    """Refuse examples, inputs and targets that the training loop cannot take."""
    for examples in (problem.train, problem.test):
        if not hasattr(examples, "batch"):
            raise ArgumentError(
                "data() returns examples for training and for testing, got a "
                f"{type(examples).__name__}. Wrap a torch Dataset: "
                "renorm.lab.examples.DatasetExamples(dataset, labels)."
            )
        for what, value in zip(
            ("inputs", "targets"), examples.batch(torch.zeros(1, dtype=torch.long)), strict=True
        ):
            if not isinstance(value, Tensor):
                raise ArgumentError(
                    f"The {what} of a batch are one tensor (n, ...), got a "
                    f"{type(value).__name__}. Put the parts into one tensor, and take them apart "
                    "in the model or in the loss."
                )
