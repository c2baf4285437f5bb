"""What a case is: how a patient is made, and what the doctor should say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from planted.ground import Ground
from renorm.measure.records import MODEL, Setting

Loss = Callable[[Any, Any], Tensor]


def setting(purpose: str = "training", steps: int | None = None, accumulation: int = 1) -> Setting:
    """What a user says the model is for; one process."""
    return Setting(MODEL, purpose, steps, accumulation, 1)


def classified(output: Tensor, batch: Sequence[Tensor]) -> Tensor:
    """The cross-entropy of scores (N, classes) against labels, the last entry of the batch."""
    return F.cross_entropy(output, batch[-1])


@dataclass
class Patient:
    """A model and the batches of its user.

    Args:
        model: in the mode that its user has it in.
        batches: as the user's loader gives them.
        sick: percent on data held out in eval mode, as the model is used; None where there is
            nothing to be scored, as in a model that has yet to be trained.
        well: the same without the planted cause.
        loss: ``(output, batch) -> a number``.
        setting: what the user says of it.
        before: the model before it was converted, if it was.
        held_out: batches by which fixes are judged; None for some of ``batches``.
    """

    model: nn.Module
    batches: Sequence[Any]
    sick: float | None = None
    well: float | None = None
    loss: Loss = classified
    setting: Setting = field(default_factory=setting)
    before: nn.Module | None = None
    held_out: Sequence[Any] | None = None


@dataclass(frozen=True)
class Case:
    """A planted disease, or a healthy control.

    Args:
        name: of the case.
        make: the patient, of some data and a seed.
        planted: id of the finding that must be among the first two; None for a control.
        accepted: other ids that name the same cause.
        fixes: those of which one must be ranked first; empty where none of them can cure it.
    """

    name: str
    make: Callable[[Ground], Patient]
    planted: str | None = None
    accepted: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()
