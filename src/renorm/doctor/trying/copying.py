"""Copies of a model to try something on."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parameter import is_lazy

from renorm.errors import ArgumentError
from renorm.measure.surveying import unwrapped


def whole(model: nn.Module) -> nn.Module:
    """The model that a compiled one or one of DistributedDataParallel runs.

    Raises:
        ArgumentError: its parameters are sharded, so a copy would not be whole.
    """
    model = unwrapped(model)
    if any(_is_sharded(module) for module in model.modules()):
        raise ArgumentError(
            f"Fixes are tried on copies, and of {type(model).__name__} a process has only its "
            "shard (FSDP). Give the model before it is wrapped, with the state_dict loaded."
        )
    uninitialized = [n for n, p in model.named_parameters() if is_lazy(p)]
    if uninitialized:
        raise ArgumentError(
            f"These parameters have no shape yet: {', '.join(uninitialized)}. Initialize the "
            "model by a forward first."
        )
    return model


def copied(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model.

    Raises:
        ArgumentError: the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # of whatever the model holds
        raise ArgumentError(
            f"Fixes are tried on copies, and copy.deepcopy of {type(model).__name__} fails: "
            f"{error} Have it hold nothing that cannot be copied, such as open files, or outputs "
            "of a forward with gradients (torch.nn.utils.spectral_norm and weight_norm do: use "
            "those of torch.nn.utils.parametrizations)."
        ) from error


@contextmanager
def gradients_apart(model: nn.Module) -> Iterator[None]:
    """Keep the gradients of a model that a loss may refer to, while copies of it are trained."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _is_sharded(module: nn.Module) -> bool:
    return any(
        cls.__name__ in ("FullyShardedDataParallel", "FSDPModule")
        and cls.__module__.startswith("torch.distributed")
        for cls in type(module).__mro__
    )
