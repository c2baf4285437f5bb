"""Measuring what normalization does to a model on some batches."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from torch import Tensor, nn

from renorm.calibration.procedure import check_batches
from renorm.errors import ArgumentError
from renorm.measure import examples
from renorm.measure.apart import apart
from renorm.measure.collection import Collected, Collector
from renorm.measure.depth import depth_of
from renorm.measure.inputs import call_of, examples_of
from renorm.measure.layers import completed, facts, find
from renorm.measure.passes import Forward, Passes, seen
from renorm.measure.quantities import QUANTITIES
from renorm.measure.quantity import Compared, Plan, Quantity, Trial, number
from renorm.measure.records import MODEL, Note, Survey
from renorm.measure.sampling import Reservoir
from renorm.measure.user_calls import told_forward, told_loss

Progress = Callable[[str, int, int | None], Any]
Loss = Callable[[Any, Any], Any]


def survey(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    forward: Forward | None = None,
    quantities: str | Iterable[str] | None = None,
    depth: str = "standard",
    progress: Progress | None = None,
    seed: int = 0,
) -> Survey:
    """Measure what normalization does to a model on some batches; the model stays as it is.

    Looked at are nn.BatchNorm, nn.SyncBatchNorm, the layers of this package, those of timm, and
    FrozenBatchNorm2d. First all batches go through the model in train mode, where layers
    normalize by the batch; from their values come the statistics of the population, as
    ``renorm.calibrate`` has them. Then the batches go through it by these, and some of them by
    batch, running and population statistics. All other modules are in eval mode, so there is no
    dropout. What is kept of batches does not grow with their number.

    Modes, parameters, buffers, gradients, hooks, attributes and the random states of Python,
    NumPy and torch are afterwards bit for bit as they were, after an exception too. What user
    code changes elsewhere is not undone. Compiled and DDP models run uncompiled and alone;
    nn.SyncBatchNorm in a distributed run still exchanges its statistics, and ``fully_shard`` its
    parameters, so all processes have to do the survey, with as many batches.

    Args:
        model: in any mode.
        batches: an iterable of those that ``renorm.calibrate`` takes: tensors; tuples or lists,
            of which the first element is the input; dicts of keyword arguments; or anything that
            ``forward`` takes. On the model's device. They are read twice; of an iterator, which
            ends for good, a sample is kept for the second time.
        loss: ``(output, batch) -> a number``, the mean over examples.
        forward: ``(model, batch) -> output``, for any other way to call the model.
        quantities: names of what is measured, keys of ``measure.QUANTITIES``; None for all that
            can be.
        depth: ``"quick"`` compares a few batches in the three modes, ``"standard"`` every
            second one, ``"deep"`` all, and keeps and tries more.
        progress: called after each batch with the name of the pass, the batches done in it, and
            their number or None.
        seed: of what is drawn.

    Returns:
        The records. Ctrl-C ends the survey with those there are so far, and ``interrupted``.

    Raises:
        ArgumentError: no batch, no normalization layer, none that a batch reaches, a model in
            FullyShardedDataParallel, a quantity that was asked for by name and cannot be
            measured, or an argument outside the ranges above.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    >>> found = survey(model, [torch.randn(8, 3) for _ in range(10)])
    >>> found.batches, found.complete, list(found.layers())
    (10, True, ['1'])
    """
    check_batches(batches)
    _check(loss, forward, progress, seed)
    names = _names(quantities)
    plan_depth = depth_of(depth)
    inner = unwrapped(model)
    plan = Plan(find(inner), plan_depth, seed)
    chosen = {name: QUANTITIES[name](plan) for name in names}
    told = None if loss is None else told_loss(loss)
    work = _Work(inner, plan, chosen, told, told_forward(forward), progress)
    with apart(inner), work.passes.attached():
        try:
            work.do(batches)
        except KeyboardInterrupt:
            work.interrupted = True
    survey = work.result()
    if quantities is not None:
        _check_notes(survey)
    return survey


class _Work:
    """A survey under way."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        quantities: dict[str, Quantity],
        loss: Loss | None,
        forward: Forward,
        progress: Progress | None,
    ) -> None:
        self.passes = Passes(model, plan.layers, forward)
        self.interrupted = False
        self._model, self._plan, self._quantities = model, plan, quantities
        self._loss, self._progress = loss, progress
        self._training = model.training
        self._collectors = {name: Collector(plan.depth.rows, plan.seed) for name in plan.layers}
        self._kept: Reservoir[tuple[Any, float | None]] = Reservoir(plan.depth.batches, plan.seed)
        self._facts = facts(model, plan.layers)
        self._notes: list[Note] = []
        self._done, self._examples, self._complete = 0, 0, False

    def do(self, batches: Iterable[Any]) -> None:
        """All passes."""
        self._first_pass(batches)
        self.passes.calibrate({n: c.population for n, c in self._collected().items()})
        asked = self._quantities.values()
        if any(q.compares or q.examines for q in asked):
            again = self._plan.depth.everything and iter(batches) is not batches
            if again:
                self._second_pass(batches, self._plan.depth.every)
            else:
                self._second_pass([batch for batch, _ in self._kept.kept], 1)
        kept = self._kept.kept
        losses = [loss for _, loss in kept]
        trial = Trial(self.passes, [batch for batch, _ in kept], losses, self._loss, self._done)
        for name, quantity in self._quantities.items():
            if quantity.tries:
                self._notes += [Note(MODEL, name, why) for why in quantity.take_trial(trial)]
        self._complete = True

    def result(self) -> Survey:
        """What there is so far."""
        collected = self._collected()
        missing = [name for name in self._plan.layers if name not in collected]
        notes = [Note(name, "survey", "No batch reached the layer.") for name in missing]
        records = [r for q in self._quantities.values() for r in q.records(collected)]
        order = {name: i for i, name in enumerate([MODEL, *self._plan.layers])}
        records.sort(key=lambda record: order.get(record.layer, 0))
        return Survey(
            type(self._model).__name__,
            self._training,
            self._plan.depth.name,
            self._plan.seed,
            self._done,
            self._examples,
            self._complete,
            self.interrupted,
            (*self._facts, *records, *notes, *self._notes),
        )

    def _collected(self) -> dict[str, Collected]:
        found = {name: c.result() for name, c in self._collectors.items()}
        return {name: one for name, one in found.items() if one is not None}

    def _first_pass(self, batches: Iterable[Any]) -> None:
        def observe(name: str, layer: nn.Module, x: Tensor, mask: Tensor | None) -> None:
            call = call_of(layer, x, mask)
            self._collectors[name].take(call)
            for quantity in self._quantities.values():
                quantity.take_call(name, call, x, mask)

        for batch in self._counted("train mode", batches):
            if self._done == 0:
                with seen(self._model, self._plan.layers) as found:
                    output = self.passes.run(batch, "batch", observe)
                self._facts = [completed(one, found) for one in self._facts]
            else:
                output = self.passes.run(batch, "batch", observe)
            self._done += 1
            self._examples += examples.count(batch)
            self._keep(batch, output)
        if self._done == 0:
            raise ArgumentError(
                "There is no batch to measure by. Give a list or a DataLoader with at least one."
            )
        if not self._collected():
            raise ArgumentError(
                f"None of the {len(self._plan.layers)} normalization layers of "
                f"{type(self._model).__name__} was given a value by {self._done} batches, so there "
                "is nothing to measure. Give forward= if the model is called in another way, or "
                "batches with examples."
            )

    def _keep(self, batch: Any, output: Any) -> None:
        """Have the batch and its loss in the sample, or not."""
        place = self._kept.place()
        if place is not None:
            loss = None if self._loss is None else number(self._loss(output, batch))
            self._kept.put(place, (batch, loss))

    def _second_pass(self, batches: Iterable[Any], every: int) -> None:
        comparing = [q for q in self._quantities.values() if q.compares]
        examining = [q for q in self._quantities.values() if q.examines]

        called: set[str] = set()

        def observe(name: str, layer: nn.Module, x: Tensor, mask: Tensor | None) -> None:
            if name in called:  # other calls of a shared layer are of other values
                return
            called.add(name)
            found = examples_of(x, mask)
            for quantity in examining:
                quantity.take_examples(name, found)

        for i, batch in enumerate(self._counted("three modes", batches)):
            compares = bool(comparing) and i % every == 0
            if not (compares or examining):
                continue
            called.clear()
            output = self.passes.run(batch, "population", observe if examining else None)
            if compares:
                by_batch = self.passes.run(batch, "batch")
                running = self.passes.run(batch, "running")
                compared = self._compared(batch, by_batch, running, output)
                for quantity in comparing:
                    quantity.take_compared(compared)

    def _compared(self, batch: Any, *three: Any) -> Compared:
        losses = None
        if self._loss is not None:
            a, b, c = (number(self._loss(output, batch)) for output in three)
            losses = (a, b, c)
        by_batch, running, population = (examples.outputs(output) for output in three)
        return Compared(by_batch, running, population, losses)

    def _counted(self, stage: str, batches: Iterable[Any]) -> Iterator[Any]:
        try:
            total = len(batches) if isinstance(batches, Sized) else None
        except TypeError:  # of a DataLoader whose data set has no length
            total = None
        for i, batch in enumerate(batches, 1):
            yield batch
            if self._progress is not None:
                self._progress(stage, i, total)


def _names(quantities: str | Iterable[str] | None) -> list[str]:
    if quantities is None:
        return list(QUANTITIES)
    names = [quantities] if isinstance(quantities, str) else list(quantities)
    unknown = [name for name in names if name not in QUANTITIES]
    if unknown or not names:
        raise ArgumentError(
            f"quantities are among {', '.join(QUANTITIES)}, got {quantities!r}. Give names of "
            "them, or None for all."
        )
    return [name for name in QUANTITIES if name in names]


def _check(loss: Any, forward: Any, progress: Any, seed: Any) -> None:
    for name, given, call in (
        ("loss", loss, "(output, batch) -> a number"),
        ("forward", forward, "(model, batch) -> output"),
        ("progress", progress, "(name, done, total)"),
    ):
        if given is not None and not callable(given):
            raise ArgumentError(f"{name} is called, {call}, got {given!r}. Give a function.")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ArgumentError(f"seed is a whole number from 0 on, got {seed!r}.")


def _check_notes(survey: Survey) -> None:
    failed = [note for note in survey.of(Note) if note.quantity in QUANTITIES]
    if failed:
        raise ArgumentError(
            f"{failed[0].quantity} was asked for and cannot be measured. {failed[0].reason}"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that a compiled one or one of DistributedDataParallel runs.

    Raises:
        ArgumentError: it has modules in FullyShardedDataParallel.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif (compiled := dict(model.named_children()).get("_orig_mod")) is not None:
            model = compiled
        else:
            break
    fsdp = sys.modules.get("torch.distributed.fsdp")  # else there is none
    if fsdp and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in model.modules()):
        raise ArgumentError(
            f"{type(model).__name__} has modules in FullyShardedDataParallel, whose flat "
            "parameters are no layer's own between forwards. Shard it with "
            "torch.distributed.fsdp.fully_shard, or give the model from before it was wrapped."
        )
    return model
