"""One training run: a specification in, a record out."""

import time
from dataclasses import fields
from pathlib import Path

import torch

from renorm.environment import describe
from renorm.errors import ArgumentError, RecordError
from renorm.lab.conditions import CONDITIONS
from renorm.lab.isolation import isolated
from renorm.lab.normalizers import find
from renorm.lab.ranks import ALONE, Ranks
from renorm.lab.tasks import Outcome, Plan, Task
from renorm.lab.tasks.registry import check_source, load
from renorm.report.records import RECIPE, Record, Specification, from_line, to_line


def run(specification: Specification, data: Path | None = None, ranks: Ranks = ALONE) -> Record:
    """Train and test one net; the same specification gives the same record, whatever ran before.

    Args:
        specification: what to run, with names from the tables of this package.
        data: folder of the data sets; None for the default.
        ranks: the processes that share it; each of them calls this.

    Raises:
        ArgumentError: it is a run of another number of ranks, of another version of this package
            that trains otherwise, or of another version of a user's file; or the outcome has
            something else than finite numbers.
    """
    if ranks.world != specification.ranks:
        raise ArgumentError(
            f"This run is shared by {specification.ranks} processes, but here are {ranks.world}. "
            f"Start it with: torchrun --nproc-per-node {specification.ranks} -m renorm compare"
        )
    if specification.recipe != RECIPE:
        raise ArgumentError(
            f"This version of renorm trains by recipe {RECIPE}, but the run is of recipe "
            f"{specification.recipe}. Install one version of renorm on all machines."
        )
    check_source(specification.task, specification.source)
    started = time.process_time()
    task = task_of(specification, data)
    with isolated(specification.seed):
        outcome = task.train(plan(specification, ranks))
    record = Record(
        specification,
        task.metric.name,
        task.metric.percent,
        **{entry.name: getattr(outcome, entry.name) for entry in fields(Outcome)},
        cpu_seconds=round(time.process_time() - started, 3),
        environment=describe() | _accelerator(ranks.device),
    )
    return _as_kept(record)


def _accelerator(device: torch.device) -> dict[str, str | None]:
    """The name of a device other than the CPU, for the environment."""
    return {"device": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}


def _as_kept(record: Record) -> Record:
    """The record as it will be read again, so that what cannot be kept fails its own run alone."""
    try:
        return from_line(to_line(record))
    except (RecordError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"The outcome of {record.specification.task} cannot be kept: {error}. An Outcome has "
            "finite plain numbers, and None where there is none."
        ) from error


def task_of(specification: Specification, data: Path | None = None) -> Task:
    """The task of a run."""
    return load(specification.task, specification.model, data)


def plan(specification: Specification, ranks: Ranks = ALONE) -> Plan:
    """The run with its names looked up."""
    return Plan(
        specification,
        find(specification.normalizer),
        CONDITIONS[specification.condition],
        ranks,
    )
