"""From a model and batches to what is wrong with it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from renorm.doctor import trying
from renorm.doctor.diagnosis import Diagnosis
from renorm.errors import ArgumentError
from renorm.findings import judge
from renorm.measure.circumstances import converted, limits_ahead, rank_spread
from renorm.measure.depth import depth_of
from renorm.measure.passes import Forward
from renorm.measure.records import MODEL, Record, Setting, Survey
from renorm.measure.surveying import Loss, Progress, survey, unwrapped

PURPOSES = ("training", "finetuning", "export")


def diagnose(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss | None = None,
    *,
    forward: Forward | None = None,
    optimizer: Optimizer | Callable[[Any], Optimizer] | None = None,
    held_out: Iterable[Any] | None = None,
    purpose: str = "training",
    steps: int | None = None,
    accumulation: int = 1,
    processes: int | None = None,
    before: nn.Module | None = None,
    try_fixes: bool = False,
    fixes: Iterable[str] | None = None,
    trial_steps: int = 50,
    trial_seeds: int = 3,
    depth: str = "standard",
    progress: Progress | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Find out what normalization does to a model, and what of it is wrong.

    All that ``renorm.measure.survey`` can measure is measured, and judged by the rules of
    ``renorm.findings``. Nothing changes: parameters, buffers, gradients, hooks, modes, the
    optimizer and the random states are afterwards bit for bit as they were, after an exception
    too. An error of the model, the loss or the batches is the caller's own.

    In a distributed run all processes have to do the same, each with as many batches.

    Args:
        model: in any mode; compiled, in DistributedDataParallel, or under ``fully_shard`` too.
        batches: such as it is trained on, put together as in training: an iterable of tensors; of
            tuples or lists, of which the first element is the input; of dicts of keyword
            arguments; or of anything that ``forward`` takes. On the model's device.
        loss: ``(output, batch) -> a number``, the mean over examples. Without, what is said is of
            outputs alone.
        forward: ``(model, batch) -> output``, for any other way to call the model.
        optimizer: of the model, or a callable ``parameters -> optimizer``, which trials of fixes
            train like; it stays as it is.
        held_out: batches that trials are judged by; None for some of ``batches``.
        purpose: of the model: ``"training"``, ``"finetuning"`` or ``"export"``.
        steps: updates of the statistics that the run still does; None if unknown.
        accumulation: forwards whose gradients are added up to one step, 1 or more.
        processes: that train together, each on its share of a batch; None for as many as there
            are in the process group.
        before: the model before its layers were converted, to see what became of them.
        try_fixes: whether to train with each fix from the present weights, and rank them; takes
            minutes rather than seconds, and a loss.
        fixes: names of those to try; None for all that suit the model.
        trial_steps: of training, in each trial.
        trial_seeds: trials of each fix.
        depth: ``"quick"``, ``"standard"`` or ``"deep"``; see ``renorm.measure.survey``.
        progress: called after each batch with the name of what is done, how much of it is done,
            and of how much, or None.
        seed: of what is drawn.

    Returns:
        Findings, the worst first, and the records that they are made of. Ctrl-C ends it with
        those there are so far, and ``survey.interrupted``.

    Raises:
        ArgumentError: no batch, no normalization layer, or an argument outside the ranges above.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    >>> found = diagnose(model, [torch.randn(8, 3) for _ in range(10)])
    >>> found.survey.batches, [one.purpose for one in found.survey.of(Setting)]
    (10, ['training'])
    """
    _check_model("model", model)
    if before is not None:
        _check_model("before", before)
    fixes = None if fixes is None else trying.named(fixes)  # before minutes of measuring
    _check_trials(loss, batches, try_fixes, fixes)
    depth_of(depth)
    setting = _setting(purpose, steps, accumulation, processes)
    found = survey(model, batches, loss, forward=forward, depth=depth, progress=progress, seed=seed)
    inner = unwrapped(model)
    found = _with(found, [setting, *(() if steps is None else limits_ahead(inner, steps))])
    if before is not None:
        found = _with(found, converted(unwrapped(before), inner))
    if not found.interrupted:  # else some process may not be there to be asked
        found = _with(found, rank_spread(inner))
    if try_fixes and not found.interrupted:
        assert loss is not None
        trials = trying.try_fixes(
            model,
            batches,
            loss,
            optimizer=optimizer,
            held_out=held_out,
            fixes=fixes,
            steps=trial_steps,
            seeds=trial_seeds,
            forward=forward,
            progress=progress,
            seed=seed,
        )
        found = replace(_with(found, trials), interrupted=trials.interrupted)
    return Diagnosis(found, judge(found))


def _with(found: Survey, more: Iterable[Record]) -> Survey:
    return replace(found, records=(*found.records, *more))


def _setting(purpose: str, steps: int | None, accumulation: int, processes: int | None) -> Setting:
    if purpose not in PURPOSES:
        raise ArgumentError(f"purpose is {', '.join(map(repr, PURPOSES))}, got {purpose!r}.")
    if processes is None:
        grouped = dist.is_available() and dist.is_initialized()
        processes = dist.get_world_size() if grouped else 1
    if steps is not None:
        _check_count("steps", steps, 0, "updates that the run still does, or None if unknown")
    meaning = "forwards whose gradients are added up to one step"
    _check_count("accumulation", accumulation, 1, meaning)
    _check_count("processes", processes, 1, "processes that train together")
    return Setting(MODEL, purpose, steps, accumulation, processes)


def _check_count(name: str, value: Any, least: int, meaning: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} is a whole number from {least} on ({meaning}), got {value!r}.")


def _check_model(name: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"{name} is a torch.nn.Module, got {type(model).__name__}. Give the module whose "
            "layers are to be looked at, and how it is called as forward."
        )


def _check_trials(loss: Any, batches: Any, try_fixes: bool, fixes: Any) -> None:
    if fixes is not None and not try_fixes:
        raise ArgumentError(f"fixes are tried with try_fixes=True, got fixes={fixes!r} without.")
    if try_fixes and loss is None:
        raise ArgumentError(
            "Trying fixes takes a loss to train by, got None. Give loss, (output, batch) -> a "
            "number, or leave try_fixes out."
        )
    if try_fixes and isinstance(batches, Iterator):
        raise ArgumentError(
            f"Trying fixes reads the batches several times, got {type(batches).__name__}, which "
            "ends for good. Give a list or a DataLoader."
        )
