"""Trying fixes on copies of a model; the model stays as it is."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from renorm.calibration.procedure import run_on
from renorm.doctor.trying import optimizers
from renorm.doctor.trying.copying import copied, gradients_apart, whole
from renorm.doctor.trying.fixes import (
    FIXES,
    Applied,
    Fix,
    Means,
    after_training,
    as_it_is,
    named,
    settled,
)
from renorm.doctor.trying.results import Results
from renorm.doctor.trying.splitting import Share, in_order, kept, shares
from renorm.doctor.trying.training import Loss, Task, check_loss, judge, seed_all, train
from renorm.doctor.trying.trials import AS_IT_IS, FURTHER, Trials
from renorm.errors import ArgumentError
from renorm.measure.apart import apart
from renorm.measure.layers import find

Forward = Callable[[nn.Module, Any], Any]
Progress = Callable[[str, int, int | None], Any]
STAGE = "fixes"
_RATE_BATCHES = 8  # that the learning rate is suited to


def try_fixes(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    optimizer: Any = None,
    held_out: Iterable[Any] | None = None,
    fixes: str | Iterable[str] | None = None,
    steps: int = 50,
    seeds: int = 3,
    forward: Forward | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> Trials:
    """Train copies of a model for some steps, each with another fix, and rank what came of it.

    For each seed a copy with each fix, and one without, is trained from the given weights on the
    same batches in the same order, and judged by its loss in eval mode on batches that were held
    out: how good is the model that one would then use? The gain is the loss of the given model,
    without training, less that, whether the fix trains or not; the interval is of these
    differences within a seed (``gain``). What training and then calibration give without a fix is
    a trial of its own, ``"further training"``: a fix that trains is ``helpful`` only if it is
    better than that, and in the ranking what training itself gives is taken off (``Trials``).

    The fixes::

        calibrate        renorm.calibrate on the training batches, without training
        longer_ema       running statistics averaged over about as many batches as there are steps
        batch_renorm     renorm.convert, with limits that open within the steps, then calibrate
        cross_iteration  renorm.convert(to="cross_iteration"), then calibrate
        frozen           calibrate, then renorm.freeze: running statistics in training too
        group_norm       if asked for: the weights were made for batch norm and do not fit

    Three of them calibrate: statistics that are to be frozen have to be right before, and moving
    averages of so short a run are mostly of weights that have changed since, which is no fault of
    what they are averaged with. Longer averages are what ``"longer_ema"`` is about, so that one
    has its own.

    It is a short probe: no learning rate schedule, no accumulation of gradients, no gradient
    scaling, no clipping. What a fix is worth in a whole run may differ; above all ``"frozen"``,
    which trains at once what eval mode runs, gains early what others gain later. Modules are in
    train mode as the user has them if the model is; else all are put into train mode.

    The model, its modes, buffers, gradients and hooks, the given optimizer and the random states
    of Python, NumPy and torch are afterwards bit for bit as they were, after an exception too. One
    copy exists at a time. Compiled and DDP models are tried uncompiled and alone; in a distributed
    run each process tries by its own batches, but nn.SyncBatchNorm still exchanges its statistics,
    so all processes have to do it.

    Args:
        model: in any mode, with at least one normalization layer.
        batches: as for ``renorm.calibrate``, on the model's device. They are read once, to the
            end, and a sample of them is kept: at most a third more than ``steps``, or those of
            1,024 examples if that is more. Their order is lost, as each seed has another; their
            size and composition stay.
        loss: ``(output, batch) -> scalar tensor``, the mean over examples, of these
            alone: the weights of ``model``, for a penalty, are not those of the copy in training.
        optimizer: a callable ``parameters -> torch.optim.Optimizer``, or an optimizer of the model,
            whose class, settings and groups fresh ones have, without its state. None: SGD with
            momentum 0.9 and the learning rate, at most 0.003, at which one gradient (median of 8
            batches, the model as it is) moves the weights by 0.0005 of their length, half of what
            LARS does.
        held_out: batches to judge by, in any form; a sample of them is kept as of ``batches``, and
            dealt out to the seeds. None: every fourth one of the kept ``batches``, another four
            for each seed, is not trained on. Give some where the model was trained on these
            batches before, neighbouring ones are nearly the same, or a class is in few of them.
        fixes: names of those above; None for all but ``"group_norm"``.
        steps: of training, at least 1.
        seeds: how often all is tried, with other orders of the batches; at least 1. Below 2 there
            is no interval.
        forward: ``(model, batch) -> output``, for any other way to call the model.
        progress: called after each step with the name of the stage, ``"fixes"``, the steps done
            and their number.
        seed: of all that is drawn.

    Returns:
        A tuple of ``FixTrial``, the best first, with one of the model as it is and, if any fix
        trains, one of further training: what is no better than these by one standard error comes
        after them. A fix that could not be tried says why in ``failure``, one that diverged has
        None among its losses. Ctrl-C ends it with those of the seeds that are complete, and
        ``interrupted``.

    Raises:
        ArgumentError: too few batches, a loss that cannot be trained by, a model that has no
            normalization layer or cannot be copied, or an argument outside the ranges above.

    Source: You et al. 2017 (arXiv 1708.03888), section 5, for the length of a step.

    >>> model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    >>> batches = [torch.randn(8, 3) for _ in range(8)]
    >>> found = try_fixes(model, batches, lambda y, x: (y - x[:, :2]).square().mean(), steps=5)
    >>> len(found), found.training, found.held_out
    (7, 6, 2)
    """
    names = named(fixes)
    _check(loss, forward, steps, seeds, seed)
    inner = whole(model)
    find(inner)
    task = Task(forward or run_on, loss)
    results = Results(names, steps)
    with apart(inner), gradients_apart(inner), torch.enable_grad():
        work = _Work(inner, task, names, results, forward, steps, progress)
        try:
            work.prepare(batches, held_out, optimizer, seeds, seed)
            work.do(seeds, seed)
        except KeyboardInterrupt:
            results.interrupted = True
    return results.trials()


class _Run(NamedTuple):
    """A fix for one seed, or none before training."""

    name: str
    fix: Fix


class _Work:
    """Fixes being tried."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        names: tuple[str, ...],
        results: Results,
        forward: Forward | None,
        steps: int,
        progress: Progress | None,
    ) -> None:
        self._model, self._task, self._results = model, task, results
        self._forward, self._steps, self._progress = forward, steps, progress
        learns = any(parameter.requires_grad for parameter in model.parameters())
        self._trains = learns and any(FIXES[name].trains for name in names)
        if not learns:
            for name in names:
                if FIXES[name].trains:
                    results.fail(name, "The model has no parameter with requires_grad to train.")
        self._runs = [_Run(n, FIXES[n]) for n in names if learns or not FIXES[n].trains]
        if self._trains:
            self._runs.insert(0, _Run(FURTHER, Fix(as_it_is, True, settles=True)))
        self._runs.insert(0, _Run(AS_IT_IS, Fix(as_it_is, False)))
        self._done = 0
        self._total = 0
        self._not_ours: Exception | None = None  # raised by the progress callback

    def prepare(
        self,
        batches: Iterable[Any],
        held_out: Iterable[Any] | None,
        optimizer: Any,
        seeds: int,
        seed: int,
    ) -> None:
        """Read the batches, and see that the model, its loss and the optimizer can be tried."""
        training = kept(batches, self._steps, seed)
        judging = None if held_out is None else kept(held_out, self._steps, seed)
        self._shares = shares(training, judging, seeds)
        probe = copied(self._model)
        check_loss(probe, training[0], self._task, self._trains)
        del probe
        self._results.training = len(self._shares[0].training)
        self._results.held_out = len(self._shares[0].held_out)
        if self._trains:
            self._make = self._maker(optimizer, training)
        self._total = seeds * sum(self._length(run) for run in self._runs)

    def do(self, seeds: int, seed: int) -> None:
        """All seeds; in each the order of the fixes is another, so that none is always first."""
        for i in range(seeds):
            turn = i % len(self._runs)
            for run in self._runs[turn:] + self._runs[:turn]:
                before = self._done
                if not self._results.failed(run.name):
                    self._try(run, self._shares[i], (seed, i))
                self._advance(before + self._length(run) - self._done)
            self._results.finish(i)

    def _try(self, run: _Run, share: Share, seed: tuple[int, int]) -> None:
        model = copied(self._model)
        seed_all(model, (1000 * seed[0] + seed[1]) % 2**32)
        means = Means(self._steps, share.training, self._forward)
        try:
            applied = run.fix.apply(model, means)
            time = self._train(applied, share, seed) if run.fix.trains else None
            diverged = run.fix.trains and time is None
            if run.fix.settles:
                applied = applied._replace(code=after_training(applied.code, means))
                if not diverged:
                    settled(applied.model, means)
            found = None if diverged else judge(applied.model, share.held_out, self._task)
        except Exception as error:  # the other fixes may be possible
            if error is self._not_ours:
                raise
            self._results.fail(run.name, f"{type(error).__name__}: {error}")
            return
        self._results.put(run.name, seed[1], applied.code, found, time)

    def _train(self, applied: Applied, share: Share, seed: tuple[int, int]) -> float | None:
        model = applied.model
        if not model.training:
            model.train()
        batches = in_order(share.training, self._steps, seed)
        return train(model, batches, self._task, self._make(model), lambda: self._advance(1))

    def _maker(self, optimizer: Any, training: list[Any]) -> optimizers.Make:
        if optimizer is None:
            probe = copied(self._model).train()
            some = training[:: -(-len(training) // _RATE_BATCHES)]
            losses = [lambda batch=batch: self._task(probe, batch) for batch in some]
            rate = optimizers.suited_rate(probe, losses)
            self._results.optimizer = f"SGD, learning rate {rate:g}, momentum {optimizers.MOMENTUM}"
            return optimizers.default(rate)
        make = optimizers.maker(optimizer, self._model)
        self._results.optimizer = type(make(copied(self._model))).__name__
        return make

    def _length(self, run: _Run) -> int:
        return self._steps if run.fix.trains else 1

    def _advance(self, steps: int) -> None:
        self._done += steps
        if self._progress is None or not steps:
            return
        try:
            self._progress(STAGE, self._done, self._total)
        except Exception as error:
            self._not_ours = error
            raise


def _check(loss: Any, forward: Any, steps: Any, seeds: Any, seed: Any) -> None:
    if not callable(loss):
        raise ArgumentError(
            f"Fixes are judged by a loss, (output, batch) -> scalar tensor, got {loss!r}. For "
            "example: lambda output, batch: F.cross_entropy(output, batch[1])."
        )
    if forward is not None and not callable(forward):
        raise ArgumentError(f"forward is called with the model and a batch, got {forward!r}.")
    for name, value, least in (("steps", steps, 1), ("seeds", seeds, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ArgumentError(f"{name} is a whole number of at least {least}, got {value!r}.")
