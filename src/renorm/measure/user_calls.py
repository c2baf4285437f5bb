"""Calls of a user's model and loss, whose errors say what they were called with."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from renorm.calibration.procedure import run_on

_ENTRIES = 4  # of a batch that are described


def told_forward(
    forward: Callable[[nn.Module, Any], Any] | None,
) -> Callable[[nn.Module, Any], Any]:
    """``forward``, or the usual call of a model; an error gets a note on what was given."""

    def call(model: nn.Module, batch: Any) -> Any:
        how = "forward(model, batch)" if forward is not None else _usual(batch)
        first = next(model.parameters(), None)
        where = "" if first is None else f", the model {_kind(first)}"
        with _noted(
            f"renorm called {how}: the batch is {described(batch)}{where}. Batches have to be as "
            "the model takes them, on its device; forward=lambda model, batch: ... calls it in "
            "another way."
        ):
            return (forward or run_on)(model, batch)

    return call


def told_loss(loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``loss``, whose error gets a note on what was given."""

    def call(output: Any, batch: Any) -> Any:
        with _noted(
            f"renorm called loss(output, batch): the output is {described(output)}, the batch "
            f"{described(batch)}. loss takes the whole batch, so pick the target from it, as in "
            "loss=lambda output, batch: F.cross_entropy(output, batch[1])."
        ):
            return loss(output, batch)

    return call


def described(value: Any) -> str:
    """A batch or an output by its types and shapes.

    >>> import torch
    >>> described((torch.zeros(2, 3), torch.zeros(2).long()))
    'a tuple of (float32 (2, 3) on cpu, int64 (2,) on cpu)'
    >>> described({"x": torch.zeros(1)}), described(None)
    ("a dict with 'x': float32 (1,) on cpu", 'None')
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}"
    if isinstance(value, Mapping):
        some = [f"{key!r}: {described(one)}" for key, one in list(value.items())[:_ENTRIES]]
        return f"a {type(value).__name__} with {_some(some, len(value))}"
    if isinstance(value, tuple | list):
        some = [described(one) for one in value[:_ENTRIES]]
        return f"a {type(value).__name__} of ({_some(some, len(value))})"
    return "None" if value is None else type(value).__name__


def _some(parts: list[str], count: int) -> str:
    return ", ".join(parts) + (f" and {count - len(parts)} more" if count > len(parts) else "")


def _usual(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return "model(**batch)"
    return "model(batch[0])" if isinstance(batch, tuple | list) else "model(batch)"


def _kind(parameter: Tensor) -> str:
    return f"{str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"


@contextmanager
def _noted(note: str) -> Iterator[None]:
    """Say more about an error, which stays the user's own."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise
