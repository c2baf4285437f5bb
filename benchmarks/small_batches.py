"""Accuracy on Fashion-MNIST where fewer and fewer examples are normalized together.

A ResNet-8 is trained with gradient batches of 32 throughout, while 32, 4, 2 or 1 of the examples
share the statistics of batch norm, batch renorm and cross-iteration batch norm (CBN): as if 32 / n
devices normalized n examples each, see ``small_batches_training.py``. With 1, batch norm has the
positions of one image. The net is tested in eval mode, with the mean over devices of their running
means and of their running variances. Group norm is the same at every n, but for rounding.

Runs of one seed start from the same weights and see the same batches, with the same learning rate
and schedule, which were chosen for batch norm at 32.

    python benchmarks/small_batches.py --json runs.jsonl   # a second call does the missing runs

The data are not downloaded: ``--data`` is a folder in which ``fashion_mnist/`` has the four files
``{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz``.
"""

import argparse
import inspect
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import run_records
from fashion_mnist import load
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from small_batches_training import (
    CROSS_ITERATION,
    NORMALIZERS,
    SAMPLED,
    Figures,
    Run,
    build,
    train,
)
from torch.multiprocessing.spawn import spawn

from renorm.cli import DONE, INTERRUPTED, USAGE
from renorm.cli.progress import Bar
from renorm.environment import describe
from renorm.errors import RenormError
from renorm.lab.isolation import isolated
from renorm.names import known
from renorm.report.statistics import estimate, paired
from renorm.report.wording import in_points

SCHEMA = 1
BASELINE = "batch_norm"
Found = dict[Run, Figures]
T = TypeVar("T")


def work(rank: int, runs: Sequence[Run], data: Path, begun: Any, records: Any) -> None:
    """What each process does: the next run that none has begun, until there is none."""
    task = load(data)
    while True:
        with begun.get_lock():
            index = begun.value
            begun.value += 1
        if index >= len(runs):
            return
        records.put((runs[index], train(runs[index], task)))


def complete(
    runs: Sequence[Run], data: Path, jobs: int, keep: Callable[[Run, Figures], None]
) -> None:
    """Do the runs; ``keep`` gets each result as soon as it is there.

    With one job, or one run, they are done in this process.

    Raises:
        ProcessRaisedException: a process failed; the others are ended.
    """
    jobs = min(jobs, len(runs))
    if jobs <= 1:
        for run in runs:
            keep(run, train(run, load(data)))
        return
    context = multiprocessing.get_context("spawn")
    begun, records = context.Value("q", 0), context.SimpleQueue()
    started = spawn(work, (runs, data, begun, records), jobs, join=False)
    assert started is not None
    processes: list[Any] = started.processes
    try:
        ended = False
        while not ended:
            ended = started.join(timeout=0.1)
            while not records.empty():
                keep(*records.get())
    finally:
        for process in processes:
            process.terminate()
            process.join()


def check(runs: Sequence[Run], data: Path) -> None:
    """Refuse before the work what the data or a layer would refuse in it.

    Raises:
        RenormError: as the data and the layers raise it.
    """
    if runs:
        load(data)
    for run in {run.normalizer: run for run in runs}.values():
        with isolated(run.seed):
            build(run)


def read(path: Path) -> Found:
    """The figures of a file by run, the last of each; no file is no figures.

    Raises:
        ArgumentError: a line is no record of this script.
    """
    return run_records.read(path, SCHEMA, lambda record: (_of(Run, record), _of(Figures, record)))


def _of(cls: type[T], record: dict[str, Any]) -> T:
    return cls(**{name: record[name] for name in inspect.signature(cls).parameters})


def table(runs: Sequence[Run], found: Found, baseline: str) -> Table:
    """A row for each norm batch and normalizer: means over seeds, in percent."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    grid.add_column("norm batch", no_wrap=True)
    grid.add_column("normalizer", no_wrap=True)
    for heading in ("accuracy", "gain", "drop", "seconds", "runs", "diverged"):
        grid.add_column(heading, justify="right", no_wrap=True)
    sizes = sorted({run.norm_batch for run in runs}, reverse=True)
    names = list(dict.fromkeys(run.normalizer for run in runs))
    for size in sizes:
        theirs = _percent(runs, found, baseline, size)
        for name in names:
            here = [
                found[run]
                for run in runs
                if (run.normalizer, run.norm_batch) == (name, size) and run in found
            ]
            mine = _percent(runs, found, name, size)
            whole = _percent(runs, found, name, sizes[0])
            grid.add_row(
                str(size),
                name,
                in_points(estimate(list(mine.values()))) if mine else "-",
                "-" if name == baseline else _difference(mine, theirs),
                "-" if size == sizes[0] else _difference(whole, mine),
                f"{sum(one.seconds for one in here) / len(here):.0f}" if here else "-",
                str(len(here)),
                str(len(here) - len(mine)),
            )
        grid.add_section()
    return grid


def _percent(runs: Sequence[Run], found: Found, name: str, size: int) -> dict[int, float]:
    """The accuracies of the runs that did not diverge, by seed."""
    return {
        run.seed: 100 * accuracy
        for run in runs
        if (run.normalizer, run.norm_batch) == (name, size)
        and run in found
        and (accuracy := found[run].accuracy) is not None
    }


def _difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    points = paired(ours, theirs)
    return "-" if points is None else in_points(points)


LEGEND = (
    "accuracy: % of the test images in eval mode. gain: accuracy less that of {baseline}, seed by "
    "seed. drop: accuracy at the largest norm batch less that, seed by seed. seconds: of processor "
    "time, a run. runs that diverged are left out of all others. ± is Student's 95 % interval over "
    "seeds."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that the file lacks, and show all; returns the exit code."""
    options = parsed(arguments)
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    environment, interrupted = describe(), False
    try:
        runs = wanted(options)
        found = {} if options.json is None else read(options.json)
        missing = [run for run in runs if run not in found]
        check(missing, options.data)
        with Bar(Console(stderr=True)) as bar:

            def keep(run: Run, figures: Figures) -> None:
                found[run] = figures
                if options.json is not None:
                    record = {"schema": SCHEMA, **asdict(run), **asdict(figures)}
                    line = json.dumps(record | {"environment": environment}, allow_nan=False)
                    with options.json.open("a") as file:
                        file.write(line + "\n")
                bar.show(sum(run in found for run in runs), len(runs), outcome(run, figures))

            try:
                complete(missing, options.data, options.jobs, keep)
            except KeyboardInterrupt:
                interrupted = True
    except (RenormError, OSError) as error:
        messages.print(f"small_batches: {error}")
        return USAGE
    output = Console()
    output.print(table(runs, found, options.against))
    output.print("\n" + LEGEND.format(baseline=options.against), highlight=False)
    if interrupted:
        messages.print("Interrupted. With --json, the same command does the missing runs.")
    return INTERRUPTED if interrupted else DONE


def outcome(run: Run, figures: Figures) -> str:
    """What became of a run, in a few words."""
    what = f"norm batch {run.norm_batch}, {run.normalizer}, seed {run.seed}"
    if figures.accuracy is None:
        return f"{what}: diverged at step {figures.diverged_at}"
    return f"{what}: {100 * figures.accuracy:.1f} %, {figures.seconds:.0f} s"


def wanted(options: argparse.Namespace) -> list[Run]:
    """All runs that the options ask for, seed by seed.

    A setting that a normalizer has not is 0, so that its runs are found again whatever it is.
    """
    return [
        Run(
            name,
            size,
            seed,
            options.steps,
            options.batch,
            options.lr,
            options.window if name in CROSS_ITERATION else 0,
            options.burn_in if name in CROSS_ITERATION else 0,
            options.sample if name == SAMPLED else 0,
        )
        for seed in range(options.seeds)
        for size in options.norm_batches
        for name in known("normalizer", options.normalizers, NORMALIZERS)
    ]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked as far as a single one can be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    sizes, names = [32, 4, 2, 1], list(NORMALIZERS)
    add("--data", type=Path, default=Path("../shared/data"), help="see above (../shared/data)")
    add("--normalizers", nargs="+", default=names, help=f"of {', '.join(names)}")
    add("--norm-batches", type=int, nargs="+", default=sizes, help="examples (32 4 2 1)")
    add("--against", choices=names, default=BASELINE, help=f"of the gain ({BASELINE})")
    add("--seeds", type=int, default=3, help="how many: 0, 1, ...; 1 gives no interval (3)")
    add("--steps", type=int, default=1000, help="gradient steps a run (1000)")
    add("--batch", type=int, default=32, help="examples of a gradient step (32)")
    add("--lr", type=float, default=0.1, help="learning rate at the start (0.1)")
    add("--window", type=int, default=8, help="iterations in the statistics of CBN (8)")
    add("--burn-in", type=int, default=50, help="first iterations of CBN that are batch norm (50)")
    add("--sample", type=int, default=16, help="of cbn_sampled (16)")
    add("--jobs", type=int, default=2, help="processes, of one thread each (2)")
    add("--json", type=Path, help="file of records: read first, then appended to")
    options = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"{name} is at least 1, got {getattr(options, name)}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
