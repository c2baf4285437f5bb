"""A grid of runs: every normalizer under every condition with every seed, resumably."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch

from renorm.errors import ArgumentError
from renorm.lab.conditions import CONDITIONS, check_sizes
from renorm.lab.names import known
from renorm.lab.normalizers import NORMALIZERS
from renorm.lab.pool import Failure, run_all
from renorm.lab.store import Store
from renorm.lab.tasks import TASKS
from renorm.lab.training import sampler_of
from renorm.report.records import Record, Specification

DEFAULT_NORMALIZERS = ("batch_norm", "batch_renorm", "group_norm")
DEFAULT_CONDITIONS = ("iid", "microbatch", "clustered")


@dataclass(frozen=True)
class Grid:
    """All combinations of normalizers, conditions and seeds, with the other settings shared.

    Args:
        normalizers, conditions: names from the tables of this package.
        seeds: how many: 0, 1, ... At least 1; an interval needs 2.
        steps: gradient steps of a run, at least 10.
        lr: learning rate at the start, above 0.
        batch_size: examples in one gradient.
        group_size: examples that share statistics in the conditions with groups.
        task: name of the data set.

    Raises:
        ArgumentError: a name that is not there, or a number outside its range.
    """

    normalizers: tuple[str, ...] = DEFAULT_NORMALIZERS
    conditions: tuple[str, ...] = DEFAULT_CONDITIONS
    seeds: int = 3
    steps: int = 1000
    lr: float = 0.1
    batch_size: int = 32
    group_size: int = 4
    task: str = "digits"

    def __post_init__(self) -> None:
        known("task", [self.task], TASKS)
        for name, kind, table in (
            ("normalizers", "normalizer", NORMALIZERS),
            ("conditions", "condition", CONDITIONS),
        ):
            object.__setattr__(self, name, known(kind, getattr(self, name), table))
        if self.seeds < 1:
            raise ArgumentError(
                f"seeds is how many seeds to run, at least 1 (an interval needs 2), got "
                f"{self.seeds}."
            )
        if self.steps < 10:
            raise ArgumentError(
                f"steps is the length of a run in gradient steps, at least 10, got {self.steps}."
            )
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ArgumentError(f"lr is the learning rate, above 0, got {self.lr}.")
        check_sizes(self.batch_size, self.group_size)

    def specifications(self) -> tuple[Specification, ...]:
        """All runs, seed by seed, so that an interrupted grid has whole seeds to compare."""
        return tuple(
            Specification(
                self.task,
                normalizer,
                condition,
                seed,
                self.steps,
                self.lr,
                self.batch_size,
                self.group_size,
            )
            for seed in range(self.seeds)
            for condition in self.conditions
            for normalizer in self.normalizers
        )

    def about(self) -> dict[str, str]:
        """Each condition in a line, with this grid's sizes."""
        sizes = {"batch": self.batch_size, "group": self.group_size}
        return {name: CONDITIONS[name].about.format(**sizes) for name in self.conditions}


@dataclass(frozen=True)
class Progress:
    """Where a grid stands after a run.

    Args:
        done: runs that have ended, those found in the store among them.
        total: runs of the grid.
        seconds_left: estimate from the runs of this call; None before there is one.
        latest: what ended last, or None at the start.
    """

    done: int
    total: int
    seconds_left: float | None
    latest: Record | Failure | None


@dataclass
class Result:
    """What a grid came to.

    Args:
        records: by specification, also of earlier calls.
        failures: runs that ended in an error, and its message.
        interrupted: whether Ctrl-C ended the work.
        warning: about a torn line of the store, or None.
    """

    records: dict[Specification, Record] = field(default_factory=dict)
    failures: dict[Specification, str] = field(default_factory=dict)
    interrupted: bool = False
    warning: str | None = None


def complete(
    grid: Grid,
    store: Store,
    workers: int = 1,
    progress: Callable[[Progress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Do the runs of the grid that the store lacks, and return all.

    Every record is on the disk before the next one is waited for. KeyboardInterrupt ends the
    workers and returns what there is.

    Args:
        grid: what to run.
        store: read first, appended to.
        workers: processes; 1 runs in this one.
        progress: called at the start and after each run.
        clock: seconds, for the time left.

    Raises:
        RecordError: the store holds something else, or cannot be written.
        ArgumentError: the grid does not fit the data, or workers is below 1.
    """
    if workers < 1:
        raise ArgumentError(f"workers is how many processes train, at least 1, got {workers}.")
    wanted = grid.specifications()
    _check_fit(grid, wanted)
    found, warning = store.read()
    store.check_writable()
    result = Result({one: found[one] for one in wanted if one in found}, warning=warning)
    missing = [one for one in wanted if one not in found]
    kept, pace = len(result.records), _Pace(len(missing), workers, clock)
    try:
        progress(Progress(kept, len(wanted), None, None))
        with closing(run_all(missing, workers)) as outcomes:
            for ended, outcome in enumerate(outcomes, start=1):
                if isinstance(outcome, Failure):
                    result.failures[outcome.specification] = outcome.message
                else:
                    store.append(outcome)
                    result.records[outcome.specification] = outcome
                progress(Progress(kept + ended, len(wanted), pace.left(ended), outcome))
    except KeyboardInterrupt:
        result.interrupted = True
    return result


class _Pace:
    """Time left, from the runs after the first of each worker: those wait for the start-up."""

    def __init__(self, total: int, workers: int, clock: Callable[[], float]) -> None:
        self.total, self.workers, self.clock = total, workers, clock
        self.since = 0.0

    def left(self, ended: int) -> float | None:
        """Seconds until the last run ends, asked as each run ends; None without a measure."""
        if ended == self.total:
            return 0.0
        if ended <= self.workers:
            self.since = self.clock()
            return None
        return (self.clock() - self.since) / (ended - self.workers) * (self.total - ended)


def _check_fit(grid: Grid, wanted: Sequence[Specification]) -> None:
    """Draw one batch of each condition from each split: sizes that do not fit raise here."""
    task = TASKS[grid.task]()
    for specification in {one.condition: one for one in wanted}.values():
        sampler = sampler_of(specification)
        for labels in (task.train_labels, task.test_labels):
            next(sampler.batches(labels, torch.Generator()))
