"""One training run: a specification in, a record out."""

import time
from dataclasses import fields
from pathlib import Path

from renorm.lab.conditions import CONDITIONS
from renorm.lab.environment import describe
from renorm.lab.isolation import isolated
from renorm.lab.normalizers import NORMALIZERS
from renorm.lab.tasks import Outcome, Plan, Task
from renorm.lab.tasks.registry import load
from renorm.report.records import Record, Specification


def run(specification: Specification, data: Path | None = None) -> Record:
    """Train and test one net; the same specification gives the same record, whatever ran before.

    Args:
        specification: what to run, with names from the tables of this package.
        data: folder of the data sets; None for the default.
    """
    started = time.process_time()
    task = task_of(specification, data)
    with isolated(specification.seed):
        outcome = task.train(plan(specification))
    return Record(
        specification,
        task.metric.name,
        task.metric.percent,
        **{entry.name: getattr(outcome, entry.name) for entry in fields(Outcome)},
        cpu_seconds=round(time.process_time() - started, 3),
        environment=describe(),
    )


def task_of(specification: Specification, data: Path | None = None) -> Task:
    """The task of a run."""
    return load(specification.task, specification.model, data)


def plan(specification: Specification) -> Plan:
    """The run with its names looked up."""
    return Plan(
        specification,
        NORMALIZERS[specification.normalizer],
        CONDITIONS[specification.condition],
    )
