"""Tasks of examples with targets."""

from abc import abstractmethod
from math import fsum
from statistics import median
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from renorm.errors import ArgumentError
from renorm.lab.examples import Examples, split
from renorm.lab.tasks.base import Metric, Outcome, Plan, Task
from renorm.lab.tasks.fitting import Problem, both_modes, fit, labels_of, normalized, sampler_of

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
HELD_OUT_EVERY = 5


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

    def problem(self, plan: Plan) -> Problem:
        """What a run trains on and what it is judged by.

        For a search on a validation split a fifth of each class is held out of the training
        examples; the test examples are not looked at.
        """
        train, test = self.data()
        if plan.specification.split == "validation":
            train, test = split(train, HELD_OUT_EVERY)
        return Problem(train, test, self.loss, self.score, self.chunk)

    def check(self, plan: Plan) -> None:
        """Draw one batch from each split and see that the condition can be made of it.

        Raises:
            ArgumentError: the data are no examples, a batch or the model's outputs are not
                tensors, classes or images are needed and not there, sizes do not fit, or groups
                of one example leave a layer one value a channel to take statistics of.
        """
        problem, condition, task = self.problem(plan), plan.condition, plan.specification.task
        _check_kinds(problem)
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
        self._check_outputs(problem)
        if sampler_of(plan).group_size == 1:
            self._check_single(problem, plan)

    def _check_outputs(self, problem: Problem) -> None:
        """Refuse a model whose outputs are not one tensor, by trying it on an example."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            inputs, _ = problem.test.batch(torch.zeros(1, dtype=torch.long))
            outputs = self.model().eval()(inputs)
        if not isinstance(outputs, Tensor):
            raise ArgumentError(
                "The outputs of a model are one tensor (n, ...), since those of several batches "
                f"are put together for the score, got a {type(outputs).__name__}. Return from "
                "model() a module that calls yours and picks or joins what loss and score need."
            )

    def _check_single(self, problem: Problem, plan: Plan) -> None:
        """Refuse groups of one where a layer would find one value a channel, by trying one."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = normalized(self.model(), plan, problem.train).train()
            inputs, _ = problem.train.batch(torch.zeros(1, dtype=torch.long))
            try:
                model(inputs)
            except ValueError as error:  # torch's batch norm and ours name it in the same words
                if "value per channel" not in str(error):
                    raise
                raise ArgumentError(
                    f"{plan.normalizer.name!r} cannot take statistics of a group of one example "
                    f"in the model of {plan.specification.task!r}: a layer finds one value per "
                    "channel there. Give a group size of at least 2, or choose a normalizer that "
                    "does not mix examples, such as group_norm."
                ) from error

    def train(self, plan: Plan) -> Outcome:
        """Train with a learning rate that falls to 0 along a cosine, then test."""
        problem = self.problem(plan)
        model = normalized(self.model(), plan, problem.train)
        course = fit(model, self.optimizer(model, plan.specification.lr), problem, plan)
        curve = tuple(course.curve)
        if course.diverged_at is not None:
            return Outcome(
                None, curve=curve, corrections=course.corrections, diverged_at=course.diverged_at
            )
        train_mode, eval_mode = both_modes(model, problem, plan)
        return Outcome(
            score=curve[-1][1],
            train_mode_score=train_mode,
            eval_mode_score=eval_mode,
            loss=fsum(course.losses) / len(course.losses),
            curve=curve,
            corrections=course.corrections,
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
