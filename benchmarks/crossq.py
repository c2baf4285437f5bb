"""CrossQ on Pendulum with our batch renorm and with sb3-contrib's own: returns, and times.

The agent is sb3-contrib's. Its norms are its own (``sb3_batch_renorm``, the baseline), ours,
torch's nn.BatchNorm1d with the same momentum and eps, layer norm or none; runs of one seed start
from the same weights. ``warmup`` is how many updates of a layer are batch norm: CrossQ has 100,000,
more than it takes to learn Pendulum, so that a run with it compares batch norms. With 1,000, r and
d act for most of the run.

For the time of an update the agents take turns in one process, three updates a turn, of which one
is the actor's, too; with warmup 0, r and d act from the first. It is processor time of one thread,
so that others on the same cores count for little.

    python benchmarks/crossq.py --json runs.jsonl   # a second call does the missing runs
    python benchmarks/crossq.py --variants batch_renorm layer_norm none --warmups 100000
    python benchmarks/crossq.py --only-time --json runs.jsonl
"""

import argparse
import inspect
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import run_records
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from renorm.bench import allocator, timing
from renorm.cli import DONE, INTERRUPTED, USAGE
from renorm.environment import describe, installed
from renorm.errors import RecordError, RenormError
from renorm.lab.conditions import CONDITIONS
from renorm.lab.isolation import isolated
from renorm.lab.normalizers import NORMALIZERS
from renorm.lab.tasks import Plan
from renorm.lab.tasks.control import BASELINE, LEARNING_STARTS, NORMS, Control
from renorm.report.records import Specification
from renorm.report.statistics import estimate, paired
from renorm.report.wording import in_points

SCHEMA = 1
UPDATES = 3  # of which one is the actor's, too
LEGEND = (
    f"return: {Control.metric.about}, at the end and at the best of the ten marks. gain: return "
    f"less that of {BASELINE.name}, seed by seed. runs: those that did not diverge, of those done. "
    "± is Student's 95 % interval over seeds."
)
TIME_LEGEND = (
    "ms: of processor time, an update, the median over turns. ratio, min.: of medians and of "
    f"minima, to {BASELINE.name}."
)
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What is trained.

    Args:
        variant: name in ``NORMS``.
        warmup: updates of a layer before r and d act.
        seed: of everything that is drawn.
        steps: of the environment.
        width: of both hidden layers of the critics.
        batch: examples of an update.
        lr: learning rate.
    """

    variant: str
    warmup: int
    seed: int
    steps: int
    width: int
    batch: int
    lr: float


@dataclass(frozen=True)
class Figures:
    """What came out.

    Args:
        final, best: mean return at the end, and at the best mark; None if the run diverged.
        curve: (step, mean return) at the marks.
        diverged_at: the step, or None.
        step_ms: processor time of an update, the median; None if the run diverged.
        seconds: processor time of the run.
    """

    final: float | None
    best: float | None
    curve: list[list[float]]
    diverged_at: int | None
    step_ms: float | None
    seconds: float


@dataclass(frozen=True)
class Step:
    """Whose update is timed.

    Args:
        variant, warmup, width, batch: as in ``Run``.
        threads: of torch.
    """

    variant: str
    warmup: int
    width: int
    batch: int
    threads: int


@dataclass(frozen=True)
class Time:
    """What an update takes.

    Args:
        median_ms, min_ms: over turns.
        median_ratio, min_ratio: of medians and of minima, to the baseline's.
        turns: how many, of ``UPDATES`` updates each.
    """

    median_ms: float
    min_ms: float
    median_ratio: float
    min_ratio: float
    turns: int

    @property
    def steady(self) -> bool:
        """Whether the machine had time for this, as in the records of ``renorm bench``."""
        return self.median_ms <= 2 * self.min_ms


def prepared(run: Run) -> tuple[Control, Plan]:
    """The task and the plan of a run."""
    specification = Specification(
        "pendulum",
        "crossq",
        run.variant,
        "iid",
        run.seed,
        run.steps,
        run.lr,
        run.batch,
        Control.group_size,
    )
    task = Control(critic=(run.width, run.width), warmup=run.warmup)
    normalizer = NORMALIZERS.get(run.variant, BASELINE)
    plan = Plan(specification, normalizer, CONDITIONS["iid"])
    task.check(plan)
    return task, plan


def train(run: Run) -> Figures:
    """Train and evaluate once, on one thread."""
    started = time.process_time()
    task, plan = prepared(run)
    with isolated(run.seed):
        outcome = task.train(plan)
    return Figures(
        outcome.score,
        None if outcome.score is None else max(value for _, value in outcome.curve),
        [list(point) for point in outcome.curve],
        outcome.diverged_at,
        None if outcome.step_seconds is None else round(1e3 * outcome.step_seconds, 3),
        round(time.process_time() - started, 1),
    )


class ProcessorClock(timing.Clock):
    """Marks in the processor time of this process: others on the same cores do not count."""

    def mark(self) -> float:
        """Now, in seconds."""
        return time.process_time()


def times(runs: Sequence[Run], turns: int) -> dict[Step, Time]:
    """The updates of all variants, taking turns on one thread; the runs differ in nothing else."""
    steps = {}
    with isolated(0):
        for run in runs:
            task, plan = prepared(run)
            agent = task.agent(plan)
            agent.learn(LEARNING_STARTS)
            steps[run.variant] = _updates(agent, run.batch)
        found, turns = timing.interleaved(steps, ProcessorClock(), 0.0, turns)
        threads = torch.get_num_threads()
    own = {name: timing.summarized(one)["forward"] for name, one in found.items()}
    base = own[BASELINE.name]
    return {
        Step(run.variant, run.warmup, run.width, run.batch, threads): Time(
            own[run.variant].median / UPDATES,
            own[run.variant].minimum / UPDATES,
            own[run.variant].median / base.median,
            own[run.variant].minimum / base.minimum,
            turns,
        )
        for run in runs
    }


def _updates(agent: Any, batch: int) -> timing.Step:
    def step(clock: timing.Clock) -> timing.Marks:
        start = clock.mark()
        agent.train(UPDATES, batch)
        return [start, clock.mark()]

    return step


def read(path: Path) -> dict[Run, Figures]:
    """The figures of a file by run, the last of each; no file is no figures.

    Raises:
        ArgumentError: a line is no record of this script.
    """
    kinds = {"crossq_return": (Run, Figures), "crossq_step": (Step, Time)}

    def parse(line: dict[str, Any]) -> tuple[Any, Any]:
        key, value = kinds[line["suite"]]
        return _of(key, line), _of(value, line)

    found = run_records.read(path, SCHEMA, parse)
    return {run: figures for run, figures in found.items() if isinstance(run, Run)}


def _of(cls: type[T], line: dict[str, Any]) -> T:
    return cls(**{name: line[name] for name in inspect.signature(cls).parameters})


def record(suite: str, what: Run | Step, found: Figures | Time) -> dict[str, Any]:
    """A line of the file."""
    packages = {name: installed(name) for name in ("sb3-contrib", "gymnasium")}
    where = {"environment": {**describe(), "torch": torch.__version__, **packages}}
    return {"schema": SCHEMA, "suite": suite} | asdict(what) | asdict(found) | where


def append(path: Path | None, *records: dict[str, Any]) -> None:
    """Write a line for each; none makes sure that the file can be written.

    Raises:
        RecordError: it cannot.
    """
    if path is None:
        return
    try:
        with path.open("a") as file:
            file.writelines(json.dumps(one, allow_nan=False) + "\n" for one in records)
    except OSError as error:
        raise RecordError(
            f"The results file {path} cannot be used: {error.strerror}. Give another file, in a "
            "folder that is there."
        ) from error


def table(runs: Sequence[Run], found: dict[Run, Figures], warmup: int) -> Table:
    """A row for each variant with one warm-up: means over seeds."""
    headings = ("variant", "return", "best", "gain", "of best", "runs")
    grid = _grid(*headings, title=f"batch norm for {warmup:,} updates")
    here = [run for run in runs if run.warmup == warmup]
    base = [run for run in here if run.variant == BASELINE.name]
    for variant in dict.fromkeys(run.variant for run in here):
        own = [run for run in here if run.variant == variant]
        returns, gains = [], []
        for name in ("final", "best"):
            mine = _by_seed(found, own, name)
            gain = paired(mine, _by_seed(found, base, name))
            returns.append(in_points(estimate(list(mine.values()))) if mine else "-")
            gains.append("-" if variant == BASELINE.name or gain is None else in_points(gain))
        finished = len(_by_seed(found, own, "final"))
        grid.add_row(variant, *returns, *gains, f"{finished}/{sum(run in found for run in own)}")
    return grid


def _by_seed(found: dict[Run, Figures], runs: Sequence[Run], name: str) -> dict[int, float]:
    """The returns of the runs that are there and did not diverge."""
    return {
        run.seed: value
        for run in runs
        if run in found and (value := getattr(found[run], name)) is not None
    }


def time_table(found: dict[Step, Time]) -> Table:
    """A row for each variant."""
    grid = _grid("warmup", "variant", "width", "ms", "ratio", "min.")
    for step, one in found.items():
        grid.add_row(
            f"{step.warmup:,}",
            step.variant + ("" if one.steady else "*"),
            str(step.width),
            f"{one.median_ms:.2f}",
            f"{one.median_ratio:.3f}",
            f"{one.min_ratio:.3f}",
        )
    return grid


def _grid(*headings: str, title: str | None = None) -> Table:
    style = {"box": SIMPLE_HEAD, "pad_edge": False, "show_edge": False, "padding": 0}
    grid = Table(title=title, title_justify="left", **style)  # type: ignore[arg-type]
    for heading in headings:
        left = heading == "variant"
        grid.add_column(heading, justify="left" if left else "right", no_wrap=True)
    return grid


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the file lacks, and show all; returns the exit code."""
    options = parsed(arguments)
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    output = Console()
    try:
        append(options.json)
        if not options.only_time:
            trained(options, messages, output)
        if not options.only_returns:
            allocator.keep_freed_pages()
            for found in timed(options):
                output.print(time_table(found))
                if not all(one.steady for one in found.values()):
                    output.print("* median above twice the minimum: disturbed, measure again")
            output.print("\n" + TIME_LEGEND, highlight=False)
    except KeyboardInterrupt:
        messages.print("Interrupted. With --json, the same command does the missing runs.")
        return INTERRUPTED
    except RenormError as error:
        messages.print(f"crossq: {error}")
        return USAGE
    return DONE


def trained(options: argparse.Namespace, messages: Console, output: Console) -> None:
    """Do the runs that the file lacks and show all, also where Ctrl-C ends it."""
    runs = [
        Run(variant, warmup, seed, options.steps, width, options.batch, options.lr)
        for width in options.widths[:1]
        for seed in range(options.seeds)
        for warmup in options.warmups
        for variant in options.variants
    ]
    found = {} if options.json is None else read(options.json)
    try:
        for run in runs:
            if run not in found:
                found[run] = train(run)
                append(options.json, record("crossq_return", run, found[run]))
                done = sum(one in found for one in runs)
                messages.print(f"{done} of {len(runs)}: {outcome(run, found[run])}")
    finally:
        for warmup in dict.fromkeys(options.warmups):
            output.print(table(runs, found, warmup))
        output.print("\n" + LEGEND + "\n", highlight=False)


def outcome(run: Run, figures: Figures) -> str:
    """What became of a run, in a few words."""
    what = f"warmup {run.warmup}, {run.variant}, seed {run.seed}"
    if figures.final is None:
        return f"{what}: diverged at step {figures.diverged_at}"
    return f"{what}: {figures.final:.1f}, at best {figures.best:.1f}, {figures.seconds:.0f} s"


def timed(options: argparse.Namespace) -> Iterator[dict[Step, Time]]:
    """The time of an update at each width, in warm-up and with r and d."""
    for width in options.widths:
        for warmup in dict.fromkeys((max(options.warmups), 0)):
            sizes = (0, LEARNING_STARTS + 1, width, options.batch, options.lr)
            found = times([Run(name, warmup, *sizes) for name in options.variants], options.turns)
            append(options.json, *(record("crossq_step", *one) for one in found.items()))
            yield found


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked as far as a single one can be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--variants", nargs="+", choices=list(NORMS), default=[BASELINE.name, "batch_renorm"])
    add("--warmups", type=int, nargs="+", default=[100_000, 1000], help="updates (100000 1000)")
    add("--seeds", type=int, default=3, help="how many: 0, 1, ...; 1 gives no interval (3)")
    add("--steps", type=int, default=6000, help="of the environment, a run (6000)")
    add(
        "--widths", type=int, nargs="+", default=[256, 1024], help="returns at the first (256 1024)"
    )
    add("--batch", type=int, default=Control.batch_size, help="examples of an update (256)")
    add("--lr", type=float, default=Control.lr, help="learning rate (0.001)")
    add("--turns", type=int, default=40, help="of the timing, three updates each (40)")
    add("--json", type=Path, help="file of records: read first, then appended to")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--only-time", action="store_true", help="train nothing")
    only.add_argument("--only-returns", action="store_true", help="time nothing")
    options = parser.parse_args(arguments)
    options.variants = list(dict.fromkeys([BASELINE.name, *options.variants]))
    for name in ("seeds", "turns"):
        if getattr(options, name) < 1:
            parser.error(f"{name} is at least 1, got {getattr(options, name)}.")
    if min(options.warmups) < 0:
        parser.error(f"warmups are at least 0, got {min(options.warmups)}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
