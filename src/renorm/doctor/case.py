"""What a user gives to be looked at: a model, batches, and what else there is."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from renorm.errors import ArgumentError

_TUPLE = ("model", "batches", "loss", "optimizer")


@dataclass(frozen=True)
class Case:
    """A model and batches, and all that ``renorm.diagnose`` can use.

    Args:
        model: in any mode.
        batches: such as it is trained on: tensors, tuples, dicts, or what ``forward`` takes.
        loss: ``(output, batch) -> a number``.
        optimizer: of the model, or a callable that makes one of parameters, for trials of fixes.
        forward: ``(model, batch) -> output``, for any other way to call the model.
        held_out: batches that trials are judged by.
        before: the model before its layers were converted.
        purpose: ``"training"``, ``"finetuning"`` or ``"export"``.
        steps: updates of the statistics that the run still does.
        accumulation: forwards whose gradients are added up to one step.
        processes: that train together; None for the process group's.
    """

    model: nn.Module
    batches: Iterable[Any]
    loss: Callable[[Any, Any], Any] | None = None
    optimizer: Optimizer | Callable[[Any], Optimizer] | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    held_out: Iterable[Any] | None = None
    before: nn.Module | None = None
    purpose: str = "training"
    steps: int | None = None
    accumulation: int = 1
    processes: int | None = None

    def arguments(self) -> dict[str, Any]:
        """Arguments of ``renorm.diagnose``, by their names."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def case_of(given: Any, name: str) -> Case:
    """The case that a user's function returned.

    Args:
        given: a case; a mapping with its entries; or a tuple of model, batches, and if there are,
            loss and optimizer.
        name: of the function, for messages.

    Raises:
        ArgumentError: it is something else.
    """
    if isinstance(given, Case):
        return given
    if isinstance(given, Mapping):
        return _from_mapping(given, name)
    if isinstance(given, tuple) and 2 <= len(given) <= len(_TUPLE):
        return Case(**dict(zip(_TUPLE, given, strict=False)))
    size = f" of {len(given)}" if isinstance(given, tuple) else ""
    raise ArgumentError(
        f"{name} returned {_described(given)}{size}. It has to return a renorm.doctor.Case, a dict "
        f"with its entries, or a tuple ({', '.join(_TUPLE)}), the last two if there are. "
        "renorm doctor --init my_doctor.py writes an example."
    )


def _from_mapping(given: Mapping[str, Any], name: str) -> Case:
    fields = [field.name for field in dataclasses.fields(Case)]
    unknown = [str(key) for key in given if key not in fields]
    missing = [key for key in fields[:2] if key not in given]
    if unknown or missing:
        wrong = [f"has no {', '.join(missing)}"] if missing else []
        wrong += [f"has {', '.join(unknown)}"] if unknown else []
        raise ArgumentError(
            f"The dict that {name} returned {', and '.join(wrong)}. Its keys are model and "
            f"batches, and among {', '.join(fields[2:])}. Name them so."
        )
    return Case(**given)


def _described(given: Any) -> str:
    return "None" if given is None else f"a {type(given).__name__}"
