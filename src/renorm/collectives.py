"""What processes tell each other: sums over a process group, and whether they agree.

The one place that uses torch.distributed. A process group of None is the default one; where none
was ever set up, a process that was launched alone is the whole group.
"""

import os
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from renorm.errors import ArgumentError, CollectiveError

Group = Any  # a ProcessGroup, or None for the default one; torch may be built without them


class Held:
    """A process group as an attribute of a module: copies share it, and no file can hold it."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> "Held":
        return self

    def __reduce__(self) -> Any:
        raise ArgumentError(
            "A process group cannot be written to a file: it belongs to the processes of this "
            "launch. Save the state_dict, or set process_group to None on the layers before."
        )


def resolved(group: Group) -> Group:
    """The group itself, or None where this process is the only one in it.

    Raises:
        ArgumentError: this process is not in it, or there should be a group and is none.
    """
    if not (dist.is_available() and dist.is_initialized()):
        launched = os.environ.get("WORLD_SIZE", "1")
        if group is None and launched == "1":
            return None
        raise ArgumentError(
            f"Statistics are to be shared among processes (WORLD_SIZE is {launched}), but there is "
            "no process group. Call torch.distributed.init_process_group before the first training "
            "forward, or build the layers with sync=None."
        )
    if dist.get_rank(group) < 0:
        raise ArgumentError(
            f"Process {dist.get_rank()} is not in the process group that its layers share "
            "statistics in. Give each process a group that it is in, as new_group returns it."
        )
    if dist.get_world_size(group) == 1:
        return None
    return dist.group.WORLD if group is None else group


def together() -> bool:
    """Whether this process trains with others: there is a default group, and it is not alone."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gathered(t: Tensor, group: Group = None) -> Tensor:
    """(P, *shape): the ``t`` of each of the P processes of the group, in all of them."""
    parts = [torch.empty_like(t) for _ in range(dist.get_world_size(group))]
    with _explained(group):
        dist.all_gather(parts, t.contiguous(), group=group)
    return torch.stack(parts)


def total(t: Tensor, group: Group, known: Tensor | None = None) -> Tensor:
    """The sum of ``t`` over the group, bit for bit the same in each process; differentiable.

    If it is ``known`` from before, nothing is exchanged until it is differentiated.
    """
    return _Total.apply(t, group, known)


class _Total(torch.autograd.Function):
    """A sum that each process gets: the gradient of its terms is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Group, known: Tensor | None) -> Tensor:
        ctx.group = group
        if known is not None:
            return known.clone()
        t = t.clone(memory_format=torch.contiguous_format)
        with _explained(group):
            dist.all_reduce(t, group=group)
        return t

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return total(grads[0], ctx.group), None, None


class Pending:
    """A sum over the group that is under way."""

    def __init__(self, t: Tensor, group: Group) -> None:
        self._t, self._group = t, group
        with _explained(group):
            self._work = dist.all_reduce(t, group=group, async_op=True)

    def wait(self) -> Tensor:
        """The sum, once it is there."""
        if self._work is not None:
            with _explained(self._group):
                self._work.wait()
        return self._t


def agree(settings: Mapping[str, str], group: Group) -> None:
    """Refuse, in each process alike, what was not set up alike in all of them.

    Raises:
        ArgumentError: some processes have other settings; the message has the values of each.
    """
    everyone: list[Any] = [None] * dist.get_world_size(group)
    with _explained(group):
        dist.all_gather_object(everyone, dict(settings), group=group)
    names = {name: None for theirs in everyone for name in theirs}  # in order, once each
    for name in names:
        first: dict[str, int] = {}  # rank that has a value
        for rank, theirs in enumerate(everyone):
            first.setdefault(theirs.get(name, "absent"), rank)
        if len(first) > 1:
            listed = "; ".join(f"rank {rank}: {value}" for value, rank in first.items())
            raise ArgumentError(
                f"Processes that share statistics must have the same layers, settings and running "
                f"statistics, but {name} differs ({listed}). Build the model alike everywhere and "
                "start from one checkpoint."
            )


@contextmanager
def _explained(group: Group) -> Any:
    """Say what a failing exchange means; torch's own words follow."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if torch._C._are_functorch_transforms_active():
            raise  # torch has no rule for a sum over processes inside of one
        raise CollectiveError(
            f"Process {dist.get_rank()} could not exchange statistics with the others of its "
            f"group of {dist.get_world_size(group)}: one has died, is more than the group's "
            "timeout behind, or did not run the same layers in the same order. The statistics of "
            f"this step are lost; resume from a checkpoint. torch says: {error}"
        ) from error
