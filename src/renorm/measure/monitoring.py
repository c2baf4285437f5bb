"""Looking at the normalization layers of a model while it is trained."""

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.errors import ArgumentError
from renorm.kernels import exchange
from renorm.measure import table
from renorm.measure.calls import Seen, fetch, joint, look
from renorm.measure.eager import uncompiled
from renorm.measure.observation import Observation, observation
from renorm.measure.schedules import Schedule, schedule
from renorm.nn import BatchRenorm, CrossIterationBatchNorm

Log = Callable[[int, dict[str, float]], Any]


class Monitor:
    """Observe the normalization layers of a model in every so many steps of its training.

    Observed are nn.BatchNorm, nn.SyncBatchNorm, and the layers of this package; ``Observation``
    says what of them. The model is not changed, and nothing is drawn from torch's generators::

        with renorm.measure.Monitor(model, every=100, log=log) as monitor:
            for inputs, targets in loader:
                ...  # forward, backward, optimizer.step()
                monitor.step()
        print(monitor)

    A step is what lies between two calls of ``step``, which belongs behind that of the optimizer;
    with gradient accumulation it is several forwards, and all are pooled. Observed are the steps
    that begin after 0, ``every``, 2 ``every``... others. In these alone the layers have hooks, so
    others cost nothing. What hooks take stays on the device until ``step`` fetches it at once.

    Not observed are forwards in eval mode, of frozen layers and of those without running
    statistics, and what activation checkpointing repeats. Compiled models run uncompiled in
    observed steps, by ``torch.compiler.set_stance("force_eager")``, since compiled code does not
    see hooks; CUDA graphs are replayed without them, and not observed. Nothing is
    sent to other processes, so some may do without a monitor: of layers with ``sync="batch"`` the
    statistics of the joint batch are seen as they are exchanged; of nn.SyncBatchNorm each process
    sees those of its own part.

    Args:
        model: whose layers are observed, under the names they have in it. Of a model that is
            wrapped or compiled, the inner one may be given as well.
        every: steps from one that is observed to the next, at least 1.
        log: called with the step and the figures of all layers, ``{"layer1.bn1/r_median": 1.1}``,
            see ``Observation.scalars``; for example ``lambda step, figures: wandb.log(figures,
            step)``. None for nothing.
        layers: globs on names of layers, such as ``"layer4.*"``; None for all.
        keep: observed steps that ``observations`` has, the latest; None for all. A step takes
            about 8 bytes a channel and microbatch.
        start: steps done before, where a run goes on.

    Raises:
        ArgumentError: the model has no such layer, or an argument is outside the ranges above.

    >>> import torch
    >>> from renorm import BatchRenorm1d, limits
    >>> model = nn.Sequential(nn.Linear(4, 8), BatchRenorm1d(8, limits=limits.fixed(3, 5)))
    >>> def log(step, figures):
    ...     print(step, len(figures))
    >>> with Monitor(model, every=2, log=log) as monitor:
    ...     for _ in range(4):
    ...         y = model(torch.randn(16, 4))  # backward, optimizer.step()
    ...         monitor.step()
    0 11
    2 11
    >>> [(one.step, one.layer, one.r.shape) for one in monitor.observations]
    [(0, '1', (1, 8)), (2, '1', (1, 8))]
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 100,
        log: Log | None = None,
        layers: str | Iterable[str] | None = None,
        *,
        keep: int | None = 20,
        start: int = 0,
    ) -> None:
        _check(every, log, keep, start)
        self._layers = _chosen(model, layers)
        self._every, self._log, self._steps = every, log, start
        self._kept: deque[tuple[Observation, ...]] = deque(maxlen=keep)
        self._seen: dict[str, list[Seen]] = {}
        self._attached: weakref.finalize | None = None
        self._closed = False
        if start % every == 0:
            self._begin()

    @property
    def steps(self) -> int:
        """Training steps done."""
        return self._steps

    @property
    def observations(self) -> list[Observation]:
        """What was observed, step after step, layers in the order of the model."""
        return [one for step in self._kept for one in step]

    def step(self) -> None:
        """Say that a training step is done.

        Raises:
            ArgumentError: the monitor is closed.
        """
        if self._closed:
            raise ArgumentError(
                "This monitor is closed and observes nothing any more. Call step() inside of its "
                "with statement, or before close()."
            )
        if self._attached is not None:
            self._detach()
            self._take()
        self._steps += 1
        if self._steps % self._every == 0:
            self._begin()

    def close(self) -> None:
        """Observe nothing any more; a step that is not done is not observed."""
        self._closed = True
        self._detach()
        self._seen = {}

    def schedule(self, steps: int | Iterable[int]) -> dict[str, Schedule]:
        """The limits of each layer that has some, over ``steps`` as ``measure.schedule`` has them.

        The steps are those of the layer, updates of its running statistics.
        """
        steps = steps if isinstance(steps, int) else list(steps)
        return {
            name: schedule(layer.limits, steps)
            for name, layer in self._layers.items()
            if isinstance(layer, BatchRenorm | CrossIterationBatchNorm) and layer.limits is not None
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __str__(self) -> str:
        if not self._kept:
            return "No step has been observed yet: call step() behind that of the optimizer."
        return table.render(self._kept[-1])

    def _begin(self) -> None:
        """Give the layers hooks, for the step that begins."""
        with ExitStack() as attached:
            for name, layer in self._layers.items():
                hook = _Hook(partial(self._look, name))
                handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
                attached.callback(handle.remove)
                if isinstance(layer, BatchRenorm) and layer.sync == "batch":
                    after = layer.register_forward_hook(_Hook(_leave), always_call=True)
                    attached.callback(after.remove)
            attached.enter_context(uncompiled)
            # also where a monitor is forgotten in an observed step
            self._attached = weakref.finalize(self, attached.pop_all().close)

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached()
            self._attached = None

    def _look(self, name: str, layer: _BatchNorm, args: tuple, kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("input")
        mask = None
        if isinstance(layer, BatchRenorm):
            mask = args[1] if len(args) > 1 else kwargs.get("mask")
        seen = look(layer, x, mask)
        if seen is None:
            return
        calls = self._seen.setdefault(name, [])
        calls.append(seen)
        if isinstance(layer, BatchRenorm) and layer.sync == "batch":
            exchange.observers.append(lambda moments: calls.__setitem__(-1, joint(seen, moments)))

    def _take(self) -> None:
        """Make observations of what the hooks have seen, keep and log them."""
        seen, self._seen = self._seen, {}
        if not seen:
            return
        calls = iter(fetch([call for own in seen.values() for call in own]))
        fetched = {name: [next(calls) for _ in own] for name, own in seen.items()}
        made = [
            observation(self._steps, name or "(model)", fetched[name])
            for name in self._layers
            if name in fetched
        ]
        found = tuple(one for one in made if one is not None)
        if not found:
            return
        self._kept.append(found)
        if self._log is not None:
            self._log(self._steps, _figures(found))


def set_aside(model: nn.Module) -> None:
    """Take the hooks of all monitors from the layers, for whoever puts the tables of hooks back."""
    for layer in model.modules():
        for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook)]:
                del hooks[key]


def _leave(*call: Any) -> None:
    exchange.observers.clear()


class _Hook:
    """A hook of a layer; in a copy of the layer, pickled ones too, it does nothing."""

    def __init__(self, look: Callable[..., None] | None = None) -> None:
        self._look = look

    def __call__(self, *call: Any) -> None:
        if self._look is not None:
            self._look(*call)

    def __reduce__(self) -> tuple[type["_Hook"], tuple[()]]:
        return _Hook, ()


def _figures(observations: Sequence[Observation]) -> dict[str, float]:
    return {
        f"{one.layer}/{key}": value for one in observations for key, value in one.scalars().items()
    }


def _chosen(model: nn.Module, patterns: str | Iterable[str] | None) -> dict[str, _BatchNorm]:
    """The layers by their first names."""
    names: dict[_BatchNorm, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BatchNorm):
            names.setdefault(module, []).append(name)
    if not names:
        raise ArgumentError(
            f"{type(model).__name__} has no batch norm, batch renorm or cross-iteration layer to "
            "observe. Give a model that has some."
        )
    if patterns is None:
        return {known[0]: layer for layer, known in names.items()}
    wanted = [patterns] if isinstance(patterns, str) else _listed(patterns)
    for pattern in wanted:
        _check_pattern(pattern, names)
    return {
        known[0]: layer
        for layer, known in names.items()
        if any(fnmatchcase(name, pattern) for name in known for pattern in wanted)
    }


def _listed(patterns: Any) -> list[Any]:
    wanted = list(patterns) if isinstance(patterns, Iterable) else []
    if not wanted:
        raise ArgumentError(
            f"layers is a glob on the names of normalization layers or an iterable of such, at "
            f"least one, got {patterns!r}. Give None for all layers."
        )
    return wanted


def _check_pattern(pattern: Any, names: Mapping[_BatchNorm, Sequence[str]]) -> None:
    known = [name for own in names.values() for name in own]
    if not isinstance(pattern, str) or not any(fnmatchcase(name, pattern) for name in known):
        raise ArgumentError(
            f"layers are globs on the names of normalization layers, and none has a name like "
            f"{pattern!r}. There are {', '.join(map(repr, known[:8]))}"
            f"{' and others' if len(known) > 8 else ''}."
        )


def _check(every: Any, log: Any, keep: Any, start: Any) -> None:
    counts = {"every": (every, 1), "keep": (1 if keep is None else keep, 1), "start": (start, 0)}
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{name} counts training steps, at least {least}, got {value!r}.")
    if log is not None and not callable(log):
        raise ArgumentError(
            f"log is called with the step and a dict of figures, got {log!r}. Give a function, or "
            "None and read observations."
        )
