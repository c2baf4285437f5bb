"""What a quantity is asked for in the passes of a survey."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.measure.collection import Collected
from renorm.measure.depth import Depth
from renorm.measure.inputs import Call, Examples
from renorm.measure.passes import Passes
from renorm.measure.records import Record


def told(value: float) -> float | None:
    """The number, or None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def number(loss: Any) -> float:
    """What a user's loss came to.

    Raises:
        ArgumentError: it is no single real number.
    """
    single = isinstance(loss, Tensor | int | float | np.number) and np.prod(np.shape(loss)) == 1
    if not single or (loss.is_complex() if isinstance(loss, Tensor) else np.iscomplexobj(loss)):
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise ArgumentError(
            f"The loss is one number a batch, got {type(loss).__name__}{shape}. Return its mean "
            'over examples, which is what reduction="mean" gives.'
        )
    return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)


class Plan(NamedTuple):
    """What all quantities of a survey are given."""

    layers: Mapping[str, nn.Module]
    depth: Depth
    seed: int


class Compared(NamedTuple):
    """A batch through the model by the batch, by running and by population statistics."""

    batch: list[Tensor]
    running: list[Tensor]
    population: list[Tensor]
    losses: tuple[float, float, float] | None  # in that order


class Trial(NamedTuple):
    """What is tried with some batches at the end.

    Args:
        passes: to run them.
        batches: a sample.
        losses: of these, in train mode; None without a loss.
        loss: ``(output, batch) -> a number``, or None.
        total: batches that the sample is of.
    """

    passes: Passes
    batches: Sequence[Any]
    losses: Sequence[float | None]
    loss: Any
    total: int


class Quantity:
    """Takes what it needs of the passes, keeps a bounded amount, and makes records of it.

    Attributes:
        compares: whether it takes outputs of the three modes.
        examines: whether it takes examples.
        tries: whether it takes a trial.
    """

    compares: ClassVar[bool] = False
    examines: ClassVar[bool] = False
    tries: ClassVar[bool] = False

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def take_call(self, layer: str, call: Call, x: Tensor, mask: Tensor | None) -> None:
        """A call of a layer in train mode, with its input (N, C, *spatial) and mask."""

    def take_examples(self, layer: str, examples: Examples) -> None:
        """A call of a layer by population statistics."""

    def take_compared(self, compared: Compared) -> None:
        """A batch in the three modes."""

    def take_trial(self, trial: Trial) -> Iterator[str]:
        """Try something; the reasons for what cannot be done."""
        yield from ()

    def records(self, collected: Mapping[str, Collected]) -> Iterator[Record]:
        """What was found, layer after layer."""
        yield from ()
