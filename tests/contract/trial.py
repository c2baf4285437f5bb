"""What several checks look at: each step of a layer on a case is taken once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from torch import Tensor

from support.cases import Case, Inputs, inputs
from support.oracle import Expected, expected
from support.subjects import BATCH_NORM, Subject, fill, full_step


class First(NamedTuple):
    """What the first training step gives and leaves, none of it to be changed by a check."""

    y: Tensor
    dx: Tensor
    dresidual: Tensor | None
    dweight: Tensor | None
    dbias: Tensor | None
    state: Mapping[str, Tensor]
    buffers_before: Mapping[str, tuple[int, int]]  # by name: which object, and where its values lie
    buffers: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Trial:
    """A layer and a case on which checks are made, one after the other."""

    subject: Subject
    case: Case

    @property
    def exact(self) -> Expected:
        """What the first step must give."""
        return _exact(self.case)

    @cached_property
    def _stepped(self) -> tuple[Any, First]:
        layer, t = made(self.subject, self.case)
        kept = dict(layer.named_buffers())  # alive: another object cannot take its place in memory
        before = _places(layer)
        given = full_step(layer, t)
        gradients = (None if p is None else p.grad for p in (layer.weight, layer.bias))
        dweight, dbias = (None if g is None else g.clone() for g in gradients)
        after = _places(layer)
        del kept
        return layer, First(*given, dweight, dbias, state_of(layer), before, after)

    @property
    def first(self) -> First:
        """The first training step."""
        return self._stepped[1]

    @property
    def stepped(self) -> Any:
        """The layer that took it. Checks may train it on, so it may have taken further steps."""
        return self._stepped[0].train()

    @cached_property
    def plain(self) -> "Trial":
        """The same with the limits of batch norm."""
        return Trial(self.subject, replace(self.case, limits=(1.0, 0.0)))

    @cached_property
    def batch_norm(self) -> First:
        """The first step of torch's batch norm."""
        return Trial(BATCH_NORM, self.plain.case).first


@lru_cache(maxsize=16)
def _exact(case: Case) -> Expected:
    return expected(case, inputs(case))


def made(subject: Subject, case: Case) -> tuple[Any, Inputs]:
    """A new layer with the parameters and statistics of the case, and the inputs."""
    t = inputs(case)
    return fill(subject.build(case), t), t


def state_of(layer: Any) -> dict[str, Tensor]:
    """A copy of its state."""
    return {k: v.clone() for k, v in layer.state_dict().items()}


def _places(layer: Any) -> dict[str, tuple[int, int]]:
    return {name: (id(buffer), buffer.data_ptr()) for name, buffer in layer.named_buffers()}
