"""Running statistics that the processes of a group share, by one exchange a step.

Each process normalizes by its own batch, at once; what the batches of all processes say about the
running statistics is summed behind the backward pass, and is there at the next forward. As r and d
pull every process towards these statistics, each normalizes as if it knew the others' examples,
but for one step. Layers with ``sync="batch"`` know them at once, and wait for them twice a layer.
"""

import sys
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
from renorm.nn.deferral import (
    Buffers,
    Deferral,
    Moments,
    Rule,
    Standing,
    buffers_of,
    is_ready,
    moved_by,
    standing,
    write,
)
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

    over the processes i that have a finite batch of more than one value, so the statistics are
    equal everywhere, bit for bit. Every process calls ``model`` equally often; empty and uneven
    batches are fine. Within ``renorm.accumulate`` all forwards are exchanged at once, at the end.
    A layer of ``model`` is not trained by itself, outside of its forward. At the first step, and
    every 100 steps, the processes make sure that layers, settings and statistics are alike.

    DistributedDataParallel may wrap the model before or after, and may broadcast buffers: they are
    the same in all processes, so ``broadcast_buffers=False`` saves a wait. With FSDP2, call this
    before or after ``fully_shard``. Under torch.compile there is a graph break before and after
    the model's forward.

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
    for exchange in _exchanges_of(model):
        exchange.disband()
    Exchange(model, list(layers.values()), group)
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

    Also for a copy of a part of a model, whose layers share nothing any more, but still should.

    >>> from renorm.nn import BatchRenorm1d
    >>> model = unsync_running(sync_running(nn.Sequential(BatchRenorm1d(4))))
    >>> model[0].sync is None
    True
    """
    for layer in model.modules():
        if isinstance(layer, BatchRenorm) and layer.sync == "running":
            layer._leave_deferral()
            layer.sync = layer.process_group = None
    return model


def settle(model: M) -> M:
    """Have the exchanges under way arrive: for who reads or writes buffers by hand between steps.

    Forwards, state_dict, load_state_dict, copies and this package's functions do so themselves.
    ``AveragedModel.update_parameters`` reads buffers by hand, and so does a compiled part of the
    model that is called by itself.
    """
    layers = [m for m in model.modules() if isinstance(m, BatchRenorm)]
    for deferral in dict.fromkeys(layer._deferral for layer in layers):
        if deferral is not None:
            deferral.conclude()
    return model


def _exchanges_of(root: nn.Module) -> list["Exchange"]:
    """Those that begin where the forward of the root ends, whatever has become of their layers."""
    owners = [getattr(hook, "__self__", None) for hook in root._forward_hooks.values()]
    return [owner for owner in owners if isinstance(owner, Exchange)]


@dataclass
class _Sent:
    """An exchange under way, and what it is to be added to.

    What it leads to depends on nothing that happens meanwhile, and can be written again: processes
    may read their statistics at different times, and DistributedDataParallel then gives those of
    one that has not to one that has. Statistics that somebody else has changed are left alone.
    """

    buffers: Buffers
    of_layer: Tensor
    rule: Rule
    before: Standing
    sums: Pending
    after: Standing | None = None

    def write(self) -> None:
        """Have the sums arrive in the statistics."""
        if self.after is None:
            layers, channels = len(self.buffers.means), len(self.of_layer)
            values, first, second = self.sums.wait().split([layers, channels, channels])
            n = values.clamp(min=1)[self.of_layer]
            mean = first / n
            var = (second / n - mean.square()).clamp(min=0)
            moments = Moments(values, mean, var, self.of_layer)
            self.after = moved_by(self.rule, self.before, moments)
        now, before, after = standing(self.buffers), self.before, self.after
        new = (torch.where(n == b, a, n) for n, b, a in zip(now, before, after, strict=True))
        write(self.buffers, Standing(*new))


class Exchange(Deferral):
    """The put-off updates of a model's layers, by the moments of a group's processes."""

    def __init__(self, root: nn.Module, layers: Sequence[BatchRenorm], group: Group) -> None:
        super().__init__()
        self.root = root
        self._held = None if group is None else Held(group)
        self._error: BaseException | None = None  # that was being handled as the forward began
        self._inside = False  # a forward of the root
        self._nested = 0  # forwards of the root inside that one
        self._failed = False  # the exchange before this forward
        self._steps = 0
        self._sent: list[_Sent] = []
        self.adopt(layers)
        for layer in layers:
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
            moments, buffers = self._collected(layers), buffers_of(layers)
            before = standing(buffers)
            rule = Rule.of(layers, before, moments)
            values, mean, var, of_layer = moments
            n = values[of_layer]
            sums = Pending(torch.cat([values, n * mean, n * (var + mean.square())]), group)
            self._sent.append(_Sent(buffers, of_layer, rule, before, sums))

    def abandon(self, error: BaseException) -> None:
        super().abandon(error)
        if isinstance(error, Exception):  # at Ctrl-C nobody waits for the others
            with suppress(RenormError):  # what came first is told, not what follows from it
                self.advance()  # the others may have got through, and wait

    def settle(self) -> None:
        if any(sent.after is None for sent in self._sent):
            self._write()

    def conclude(self) -> None:
        self.settle()
        self._sent = []

    def disband(self) -> None:
        self.conclude()
        super().disband()
        self._unhook()

    def release(self, layer: Any) -> None:
        super().release(layer)
        if not self.layers:
            self._unhook()

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        # what is under way belongs to this process and these layers
        fresh = {"_sent": [], "_inside": False, "_nested": 0, "_error": None, "depth": 0}
        return {**self.__dict__, **fresh}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for layer in self.layers:
            layer._deferral = self

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
        if self._inside and _runs_inside_itself(self.root):
            self._nested += 1
            return
        interrupted, self._inside, self._nested = self._inside, False, 0
        self._failed = True
        if interrupted and not self.depth:  # Ctrl-C ends a forward without a call of the hook
            self.forget_batches()
            if self._tracks():
                self.advance()  # the others have not been interrupted, or all have
        self._write()
        if self._tracks():  # all processes come by here: none reads older ones any more
            self._sent = []
        for layer in self.layers:
            if is_ready(layer):
                self.pool_of(layer)
        self._inside, self._failed = True, False
        self._error = sys.exc_info()[1]

    def _end_forward(self) -> None:
        if self._nested:
            self._nested -= 1
            return
        self._inside = False
        if self._failed or self.depth or in_backward() or not self._tracks():
            self._failed = False
            return
        if sys.exc_info()[1] is not self._error:  # the forward raised
            self.forget_batches()
        self._error = None
        self.advance()

    def _tracks(self) -> bool:
        return any(layer.training and layer.track_running_stats for layer in self.layers)

    def _described(self) -> dict[str, str]:
        names = {module: name for name, module in self.root.named_modules()}
        settings = {"the number of layers": str(len(self.layers))}
        for layer in self.layers:
            words, name = sharing.described(layer), names.get(layer, "a layer that was taken out")
            settings |= {f"{what} of {name!r}": value for what, value in words.items()}
        return settings


def _runs_inside_itself(module: nn.Module) -> bool:
    """Whether the module is being called by its own forward: looked at where that is in doubt."""
    calls, frame = 0, sys._getframe()
    while frame is not None:
        if frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals.get("self") is module:
            calls += 1
        frame = frame.f_back
    return calls > 1


def _eagerly(work: Callable[[], None]) -> None:
    """Exchanges are no part of a compiled graph: it breaks here."""
    if torch.compiler.is_compiling():
        uncompiled: Any = torch.compiler.disable(work)
        uncompiled()
    else:
        work()
