"""Running statistics that the processes of a group share, by one exchange a step.

Each process normalizes by its own batch, at once; what the batches of all processes say about the
running statistics is summed behind the backward pass, and is there at the next forward. As r and d
pull every process towards these statistics, each normalizes as if it knew the others' examples,
but for one step. Layers with ``sync="batch"`` know them at once, and wait for them twice a layer.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from renorm import collectives
from renorm.collectives import Group, Held, Pending
from renorm.errors import ArgumentError, RenormError
from renorm.nn import BatchRenorm, sharing
from renorm.nn.deferral import Deferral, Moments, Standing, is_ready, moved_by, standing, write
from renorm.nn.recomputation import in_backward

__all__ = ["settle", "sync_running", "unsync_running"]

M = TypeVar("M", bound=nn.Module)


def sync_running(model: M, group: Group = None) -> M:
    """Share the running statistics of all batch renorm layers among processes, in place.

    After each training forward of ``model`` one asynchronous sum over the group is sent off: for
    all layers together, 2 float64 a channel and 1 a layer. It is waited for where the statistics
    are next read: by a forward, in training or eval, a state_dict, a copy, ``settle``. Then each
    layer takes one step towards the moments of the joint batch, as with ``sync="batch"``::

        n = sum n_i     mean = sum n_i mean_i / n     var = sum n_i (var_i + (mean_i - mean)^2) / n
        running_mean += momentum * (mean - running_mean)
        sigma += momentum * (sqrt(var + eps) - sigma)

    over the processes i that have a finite batch, so the statistics are equal everywhere, bit for
    bit. Every process calls ``model`` equally often; empty and uneven batches are fine. Within
    ``renorm.accumulate`` all forwards are exchanged at once, at the end. A layer of ``model`` is
    not trained by itself, outside of its forward. At the first step the processes make sure
    that layers, settings and statistics are alike.

    DistributedDataParallel may wrap the model before or after, and may broadcast buffers: they are
    the same in all processes. With FSDP2, call this before or after ``fully_shard``. Under
    torch.compile there is a graph break before and after the model's forward.

    Args:
        model: the module whose forward the training loop calls, or a part of it that is run as
            a whole. Changed in place: its layers get ``sync="running"``, it gets two hooks.
            Layers with ``sync="batch"`` are left alone.
        group: a process group of torch.distributed; None for the default one, which may also be
            set up later. A process alone updates its statistics as if nothing was shared.

    Returns:
        The model.

    Raises:
        ArgumentError: there is no layer to share, or one is already shared by another module.

    >>> from renorm.nn import BatchRenorm1d
    >>> model = sync_running(nn.Sequential(nn.Linear(3, 4), BatchRenorm1d(4)))
    >>> model[1].sync
    'running'
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, BatchRenorm)}
    layers = {
        name: m for name, m in found.items() if m.sync != "batch" and m.running_mean is not None
    }
    if not layers:
        raise ArgumentError(
            f"{type(model).__name__} has no batch renorm layer with running statistics to share: "
            f"{len(found)} batch renorm layers, of which those with sync='batch' share already. "
            "Convert its batch norm layers first: renorm.convert(model, sync='running')."
        )
    refuse_taken(model)
    unsync_running(model)
    Exchange(model, layers, group)
    return model


def refuse_taken(model: nn.Module) -> None:
    """Refuse a model of which another module shares some layers."""
    for name, layer in model.named_modules():
        deferral = layer._deferral if isinstance(layer, BatchRenorm) else None
        ours = isinstance(deferral, Exchange) and deferral.root is model and deferral.depth == 0
        if deferral is not None and not ours:
            raise ArgumentError(
                f"The statistics of layer {name!r} are already put off, by another module's "
                "sync_running or in renorm.accumulate. Call sync_running once, outside of "
                "accumulate, on the module whose forward you call."
            )


def unsync_running(model: M) -> M:
    """Undo ``sync_running``: each process updates the statistics of these layers for itself.

    >>> from renorm.nn import BatchRenorm1d
    >>> model = unsync_running(sync_running(nn.Sequential(BatchRenorm1d(4))))
    >>> model[0].sync is None
    True
    """
    for layer in _exchanged(model):
        layer._leave_deferral()
        layer.sync = layer.process_group = None
    return model


def settle(model: M) -> M:
    """Have the exchanges under way arrive: for who reads or writes buffers by hand between steps.

    Forwards, state_dict, load_state_dict, copies and this package's functions do so themselves;
    ``AveragedModel.update_parameters`` reads buffers by hand.
    """
    for layer in _exchanged(model):
        layer._deferral.conclude()
    return model


def _exchanged(model: nn.Module) -> list[Any]:
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BatchRenorm)]
    return [layer for layer in layers if isinstance(layer._deferral, Exchange)]


@dataclass
class _Sent:
    """An exchange under way, and what it is to be added to.

    What it leads to depends on nothing that happens meanwhile, and can be written again: processes
    may read their statistics at different times, and DistributedDataParallel then gives those of
    one that has not to one that has. Statistics that somebody else has changed are left alone.
    """

    layers: Sequence[Any]
    of_layer: Tensor
    before: Standing
    sums: Pending
    after: Standing | None = None

    def write(self) -> None:
        """Have the sums arrive in the statistics."""
        if self.after is None:
            channels = len(self.of_layer)
            sums = self.sums.wait().split([len(self.layers), channels, channels])
            values, first, second = sums
            n = values.clamp(min=1)[self.of_layer]
            mean = first / n
            var = (second / n - mean.square()).clamp(min=0)
            moments = Moments(values, mean, var, self.of_layer)
            self.after = moved_by(self.layers, self.before, moments)
        now, before, after = standing(self.layers), self.before, self.after
        new = (torch.where(n == b, a, n) for n, b, a in zip(now, before, after, strict=True))
        write(self.layers, Standing(*new))


class Exchange(Deferral):
    """The put-off updates of a model's layers, by the moments of a group's processes."""

    outlives_copy = True

    def __init__(self, root: nn.Module, layers: dict[str, BatchRenorm], group: Group) -> None:
        super().__init__(list(layers.values()))
        self.root = root
        self._names = list(layers)
        self._held = None if group is None else Held(group)
        self._inside = False  # a forward of the root
        self._steps = 0
        self._sent: list[_Sent] = []
        for layer in self.layers:
            layer.sync, layer.process_group = "running", group
        self._handles = [
            root.register_forward_pre_hook(self._enter),
            # also if the forward raises: the others may have come further, and wait
            root.register_forward_hook(self._leave, always_call=True),
        ]

    def meet(self, layer: Any) -> None:
        if not self._inside and not self.depth and not in_backward():
            raise ArgumentError(
                f"A {type(layer).__name__} of {type(self.root).__name__} is trained outside of the "
                "forward of that module, after which its statistics are exchanged. Call "
                "sync_running on the module that you call, or make the step inside "
                "renorm.accumulate(model)."
            )

    def advance(self) -> None:
        group = collectives.resolved(None if self._held is None else self._held.group)
        if group is None:
            super().advance()
            return
        if self._steps % sharing.AGREE_EVERY == 0:
            collectives.agree(self._described(), group)
        self._steps += 1
        for layers in self._by_device():
            before = standing(layers)
            values, mean, var, of_layer = self._collected(layers)
            n = values[of_layer]
            sums = Pending(torch.cat([values, n * mean, n * (var + mean.square())]), group)
            self._sent.append(_Sent(layers, of_layer, before, sums))

    def abandon(self) -> None:
        super().abandon()
        with suppress(RenormError):  # what ended the accumulation is told, not what follows from it
            self.advance()  # the others may have ended it well, and wait

    def settle(self) -> None:
        if any(sent.after is None for sent in self._sent):
            self._write()

    def conclude(self) -> None:
        self.settle()
        self._sent = []

    def release(self, layer: Any) -> None:
        super().release(layer)
        if not self.layers:
            for handle in self._handles:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        # what is under way belongs to this process and these layers
        return {**self.__dict__, "_sent": [], "_inside": False, "depth": 0}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Exchange | None":
        if id(self.root) not in memo:  # a layer is copied by itself, and exchanges nothing
            return None
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return made

    def _write(self) -> None:
        sent, self._sent = self._sent, []
        for each in sent:
            each.write()
        self._sent = sent  # unless one has failed

    def _enter(self, module: nn.Module, args: Any) -> None:
        _eagerly(self._begin_forward)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        _eagerly(self._end_forward)

    def _begin_forward(self) -> None:
        self._inside = False
        self._write()
        if self._tracks():  # all processes come by here: none reads older ones any more
            self._sent = []
        for layer in self.layers:
            if is_ready(layer):
                self.pool_of(layer)
        self._inside = True

    def _end_forward(self) -> None:
        began, self._inside = self._inside, False
        if began and self._tracks() and not self.depth and not in_backward():
            self.advance()

    def _tracks(self) -> bool:
        return any(layer.training and layer.track_running_stats for layer in self.layers)

    def _described(self) -> dict[str, str]:
        settings = {"the number of layers": str(len(self.layers))}
        for name, layer in zip(self._names, self.layers, strict=True):
            words = sharing.described(layer)
            settings |= {f"{what} of {name!r}": value for what, value in words.items()}
        return settings


def _eagerly(work: Callable[[], None]) -> None:
    """Exchanges are no part of a compiled graph: it breaks here."""
    if torch.compiler.is_compiling():
        uncompiled: Any = torch.compiler.disable(work)
        uncompiled()
    else:
        work()
