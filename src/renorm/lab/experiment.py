"""A grid of runs: every normalizer under every condition with every seed, resumably."""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from renorm.errors import ArgumentError
from renorm.lab import normalizers
from renorm.lab.conditions import CONDITIONS, check_sizes
from renorm.lab.pool import Site, run_all
from renorm.lab.store import Store
from renorm.lab.tasks import Reference, find
from renorm.lab.tasks.registry import load, users_code
from renorm.lab.training import plan, task_of
from renorm.names import known
from renorm.report.records import Record, Specification
from renorm.report.search import chosen_rates

OWN = ("normalizers", "conditions", "steps", "lr", "batch_size", "group_size")
_WHAT = {
    "seeds": "seeds is how many seeds to run, at least 1 (an interval needs 2)",
    "search_seeds": "search_seeds is how many seeds try each learning rate, at least 1",
    "ranks": "ranks is how many processes share a run, at least 1",
    "steps": "steps is the length of a run in gradient steps, at least 10",
}
Execute = Callable[[Sequence[Specification], Site], Generator[Record, None, None]]


@dataclass(frozen=True)
class Grid:
    """All combinations of normalizers, conditions and seeds, with the other settings shared.

    ``Grid.of`` takes what is not given from the task.

    Args:
        task: the task and its net, as ``tasks.find`` names them.
        normalizers, conditions: names from the tables of this package.
        steps: gradient steps of a run, at least 10.
        lr: learning rate at the start, above 0.
        batch_size: examples in one gradient.
        group_size: examples that share statistics in the conditions with groups.
        seeds: how many: 0, 1, ... At least 1; an interval needs 2.
        rates: learning rates to search through first, for each normalizer in each condition by
            itself, on a part of the training data; empty to use ``lr`` for all.
        search_seeds: seeds of the search, at least 1.
        ranks: processes that share the batches of a run, as torchrun starts them.
        data: folder of the data sets; None for the default.

    Raises:
        ArgumentError: a name that is not there, or a number outside its range.
    """

    task: Reference
    normalizers: tuple[str, ...]
    conditions: tuple[str, ...]
    steps: int
    lr: float
    batch_size: int
    group_size: int
    seeds: int = 3
    rates: tuple[float, ...] = ()
    search_seeds: int = 1
    ranks: int = 1
    data: Path | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls, task: str = "digits", model: str | None = None, data: Path | None = None, **given: Any
    ) -> Self:
        """A grid for a task by name; settings not given, or given as None, are the task's own.

        >>> Grid.of("digits", seeds=5).batch_size
        32

        Raises:
            ArgumentError: there is no such task, or as the class.
        """
        reference = find(task, model)
        own = load(reference.name, reference.model, data)
        settings = {name: getattr(own, name) for name in OWN}
        settings["data"] = data
        settings |= {name: value for name, value in given.items() if value is not None}
        return cls(reference, **settings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "normalizers", normalizers.names(self.normalizers))
        object.__setattr__(self, "conditions", known("condition", self.conditions, CONDITIONS))
        for name, least in (("seeds", 1), ("search_seeds", 1), ("ranks", 1), ("steps", 10)):
            if getattr(self, name) < least:
                raise ArgumentError(f"{_WHAT[name]}, got {getattr(self, name)}.")
        for rate in (self.lr, *self.rates):
            if not (rate > 0 and math.isfinite(rate)):
                raise ArgumentError(f"A learning rate is above 0 and finite, got {rate}.")
        check_sizes(self.batch_size, self.group_size, self.ranks)

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Each normalizer under each condition."""
        return tuple((one, other) for other in self.conditions for one in self.normalizers)

    def specifications(
        self, rates: Mapping[tuple[str, str], float] | None = None
    ) -> tuple[Specification, ...]:
        """All runs, seed by seed, so that an interrupted grid has whole seeds to compare.

        Args:
            rates: (normalizer, condition) -> learning rate; ``lr`` where there is none.
        """
        rates = rates or {}
        return tuple(
            self._specification(place, seed, rates.get(place), "test")
            for seed in range(self.seeds)
            for place in self.places
        )

    def search(self) -> tuple[Specification, ...]:
        """The runs of the search for learning rates; none without ``rates``."""
        return tuple(
            self._specification(place, seed, rate, "validation")
            for seed in range(self.search_seeds)
            for rate in sorted(set(self.rates))
            for place in self.places
        )

    def about(self) -> dict[str, str]:
        """Each condition in a line, with this grid's sizes."""
        sizes = {"batch": self.batch_size, "group": self.group_size}
        shared = f"; each of {self.ranks} processes takes its share" if self.ranks > 1 else ""
        return {name: CONDITIONS[name].about.format(**sizes) + shared for name in self.conditions}

    def _specification(
        self, place: tuple[str, str], seed: int, lr: float | None, split: str
    ) -> Specification:
        return Specification(
            self.task.name,
            self.task.model,
            *place,
            seed,
            self.steps,
            float(self.lr if lr is None else lr),
            self.batch_size,
            self.group_size,
            split,
            self.ranks,
            self.task.source,
        )


@dataclass(frozen=True)
class Progress:
    """Where a grid stands after a run.

    Args:
        done: runs that have ended, those found in the store among them.
        total: runs of the grid, those of the search for learning rates among them.
        seconds_left: estimate from the runs of this call; None before there is one.
        latest: what ended last, or None at the start.
    """

    done: int
    total: int
    seconds_left: float | None
    latest: Record | None


@dataclass
class Result:
    """What a grid came to.

    Args:
        wanted: the runs to be compared, at the learning rates that the search chose.
        records: by specification, also of earlier calls and of the search.
        interrupted: whether Ctrl-C ended the work.
        warning: about a torn line of the store, or None.
    """

    wanted: tuple[Specification, ...] = ()
    records: dict[Specification, Record] = field(default_factory=dict)
    interrupted: bool = False
    warning: str | None = None


def complete(
    grid: Grid,
    store: Store,
    site: Site | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    execute: Execute = run_all,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Do the runs of the grid that the store lacks or that failed, and return all.

    Every record is on the disk before the next one is waited for. KeyboardInterrupt ends the
    workers and returns what there is.

    Args:
        grid: what to run.
        store: read first, appended to; no other process may write to it meanwhile.
        site: where; None for this process.
        progress: called at the start and after each run.
        execute: what does runs: ``pool.run_all``, or that of a cluster.
        clock: seconds, for the time left.

    Raises:
        RecordError: the store holds something else, cannot be written, or is being written to.
        ArgumentError: the grid does not fit the data.
    """
    site = site or Site(grid.data)
    check_fit(grid)
    found, warning = store.read()
    result = Result(grid.specifications(), dict(found), warning=warning)
    work = _Work(store, site, progress, execute, clock, result)
    total = len(grid.search()) + len(result.wanted)
    try:
        work.do(grid.search(), total)
        if grid.rates:
            searched = [result.records[one] for one in grid.search() if one in result.records]
            result.wanted = grid.specifications(chosen_rates(searched))
        work.do(result.wanted, total)
    except KeyboardInterrupt:
        result.interrupted = True
    mine = {*grid.search(), *result.wanted}
    result.records = {one: record for one, record in result.records.items() if one in mine}
    return result


@dataclass
class _Work:
    """Runs that are done and kept, in one or two rounds."""

    store: Store
    site: Site
    progress: Callable[[Progress], None]
    execute: Execute
    clock: Callable[[], float]
    result: Result
    done: int = 0

    def do(self, wanted: Sequence[Specification], total: int) -> None:
        """Do those of the runs that have no record, or a failed one."""
        records = self.result.records
        missing = [one for one in wanted if one not in records or records[one].error is not None]
        self.done += len(wanted) - len(missing)
        if wanted:
            self.progress(Progress(self.done, total, None, None))
        if not missing:
            return
        pace = _Pace(total - self.done, self.site.workers, self.clock)
        with self.store.writing(), closing(self.execute(missing, self.site)) as outcomes:
            for ended, record in enumerate(outcomes, start=1):
                self.store.append(record)
                records[record.specification] = record
                self.done += 1
                self.progress(Progress(self.done, total, pace.left(ended), record))


def finish(
    wanted: Sequence[Specification],
    store: Store,
    site: Site | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    execute: Execute = run_all,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Do those of the runs that the store lacks or that failed, and return the records of all.

    As ``complete``, for runs that make no grid.

    Args:
        wanted: the runs, of one process each, in the order to do them; repetitions count once.
        store: read first, appended to; no other process may write to it meanwhile.
        site: where; None for this process.
        progress: called at the start and after each run.
        execute: what does runs.
        clock: seconds, for the time left.

    Raises:
        RecordError: the store holds something else, cannot be written, or is being written to.
        ArgumentError: a run does not fit its data.
    """
    site, wanted = site or Site(), tuple(dict.fromkeys(wanted))
    check_runs(wanted, site.data)
    found, warning = store.read()
    result = Result(wanted, dict(found), warning=warning)
    try:
        _Work(store, site, progress, execute, clock, result).do(wanted, len(wanted))
    except KeyboardInterrupt:
        result.interrupted = True
    asked = set(wanted)
    result.records = {one: record for one, record in result.records.items() if one in asked}
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


def check_fit(grid: Grid) -> None:
    """Ask the task whether it can make its batches under each condition, before any work.

    Raises:
        ArgumentError: as the task says it.
    """
    with users_code(grid.task.name):
        task = load(grid.task.name, grid.task.model, grid.data)
    if grid.ranks > 1 and not task.data_parallel:
        raise ArgumentError(
            f"A run of the task {grid.task.name} cannot be shared by {grid.ranks} processes: it "
            "has a training loop of its own. Start it without torchrun; --workers trains several "
            "runs at a time."
        )
    # data are split only once they are checked
    check_runs((*grid.specifications(), *grid.search()), grid.data)


def check_runs(wanted: Sequence[Specification], data: Path | None) -> None:
    """Ask the task of each run, seeds and rates apart, whether it can make its batches.

    Raises:
        ArgumentError: as the task says it.
    """
    firsts: dict[Specification, Specification] = {}
    for one in wanted:
        firsts.setdefault(replace(one, seed=0, lr=0.0), one)
    for specification in firsts.values():
        with users_code(specification.task):
            task_of(specification, data).check(plan(specification))
