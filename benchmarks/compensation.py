"""How much of the error of past statistics compensation removes, by how many iterations ago.

A ResNet-8 of batch norm is trained by SGD with momentum, and at some of its steps the iterations
before are looked at again: what the mean mu and the deviation sigma of each convolution's output
would be at the weights of now. There are two truths:

- ``own_layer``: the stored input of the convolution, with the weights that it has now. This is what
  compensation estimates, and all that it sees;
- ``whole_network``: the stored images through the whole net with all weights of now, in train mode
  again, so that each norm on the way has the statistics of these very images. The net is one of
  batch norm because in that it is known what they are: no other iteration enters.

Estimates are ``none`` (as it was); ``first_order`` and ``exact`` compensation, the latter from all
positions, from 16 and from 8 of them: what layers of cross-iteration batch norm make of the
iteration; and ``paper_nu``, the paper's expansion of nu = E[y^2], by the reference. All have the
same mean, which is linear in the weights, but for ``none``. All is in float64, per channel, and
errors are in sigmas (the root of var + 1e-5 that the layer divides by).

    error removed = 1 - rms(estimate - truth) / rms(none - truth)

with rms over channels, layers and steps. A second table has the error of sampling itself, at the
largest lag and the last of these steps: ``bias``, what the mean over all draws is off from the
variance by all positions, and ``spread``, what one draw is; both in parts of the variance, over
layers that have more positions than the sample.

    python benchmarks/compensation.py --json compensation.jsonl   # a second call does missing runs
    python benchmarks/compensation.py --data DIR --svg benchmarks/results/compensation.svg

The images are scikit-learn's digits, or with ``--data`` those of Fashion-MNIST, as in
``small_batches.py``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import fashion_mnist
import run_records
from compensation_plot import chart
from compensation_training import ESTIMATES, SAMPLES, STATISTICS, TRUTHS, Figures, Run, train
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from renorm.cli import DONE, INTERRUPTED, USAGE
from renorm.cli.progress import Bar
from renorm.environment import describe
from renorm.errors import RenormError
from renorm.lab.data import digits
from renorm.report.statistics import estimate
from renorm.report.wording import in_points

SCHEMA = 1
Found = dict[Run, Figures]
# exact on all positions: of the layer's own error nothing is left but rounding, which a
# logarithmic axis would be stretched for
DRAWN = tuple(name for name in ESTIMATES if name != "exact")
LEGEND = (
    "none: the error of a past iteration as it was, in % of sigma. The other columns: % of it that "
    "an estimate removes. ± is Student's 95 % interval over seeds."
)


def read(path: Path) -> Found:
    """The figures of a file by run, the last of each; no file is no figures.

    Raises:
        ArgumentError: a line is no record of this script.
    """
    return run_records.read(path, SCHEMA, _of)


def _of(record: dict[str, Any]) -> tuple[Run, Figures]:
    run = Run(**{field.name: record[field.name] for field in fields(Run)})
    return run, Figures(**{field.name: record[field.name] for field in fields(Figures)})


def removed(figures: Figures, truth: str, statistic: str, name: str, lag: int) -> float:
    """The percentage of the error that an estimate removes."""
    rms = figures.rms[truth][statistic]
    return 100 * (1 - rms[name][lag - 1] / rms["none"][lag - 1])


def table(found: Sequence[Figures], truth: str, window: int) -> Table:
    """A row for each statistic and lag: means over seeds."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    grid.add_column("", no_wrap=True)
    for heading in ("lag", *ESTIMATES):
        grid.add_column(heading, justify="right", no_wrap=True)
    for statistic in STATISTICS:
        for lag in range(1, window):
            errors = [100 * one.rms[truth][statistic]["none"][lag - 1] for one in found]
            cells = [
                in_points(estimate([removed(one, truth, statistic, name, lag) for one in found]))
                for name in ESTIMATES[1:]
            ]
            grid.add_row(statistic, str(lag), in_points(estimate(errors)), *cells)
        grid.add_section()
    return grid


def sampling(found: Sequence[Figures]) -> Table:
    """A row for each sample size, in percent of the variance."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    for heading in ("positions", "bias", "spread"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for size in map(str, SAMPLES):
        of_size = [[100 * part[size] for part in (one.bias, one.spread)] for one in found]
        grid.add_row(size, *(in_points(estimate(values)) for values in zip(*of_size, strict=True)))
    return grid


def show(runs: Sequence[Run], found: Found, console: Console) -> None:
    """Print the tables of each learning rate and norm batch that has runs."""
    for lr, norm_batch in dict.fromkeys((run.lr, run.norm_batch) for run in runs):
        mine = [r for r in runs if (r.lr, r.norm_batch) == (lr, norm_batch) and r in found]
        if not mine:
            continue
        figures = [found[run] for run in mine]
        settings = f"lr {lr:g}, norm batch {norm_batch}, {len(mine)} seed{'s' * (len(mine) > 1)}"
        for truth in TRUTHS:
            console.print(f"{settings}: {truth}", style="bold", highlight=False)
            console.print(table(figures, truth, mine[0].window))
            console.print()
        drawn = f"{settings}: sampled positions, {mine[0].draws} draws, % of the variance"
        console.print(drawn, style="bold", highlight=False)
        console.print(sampling(figures))
        console.print()
    console.print(LEGEND, highlight=False)


def plot(runs: Sequence[Run], found: Found) -> str:
    """The error against the lag as an SVG, a panel for each setting, truth and statistic."""
    panels = {}
    for lr, norm_batch in dict.fromkeys((run.lr, run.norm_batch) for run in runs if run in found):
        mine = [found[r] for r in runs if (r.lr, r.norm_batch) == (lr, norm_batch) and r in found]
        for truth in TRUTHS:
            for statistic in STATISTICS:
                title = f"{statistic}, {truth}, lr {lr:g}, norm batch {norm_batch}"
                panels[title] = {name: _mean_rms(mine, truth, statistic, name) for name in DRAWN}
    return chart(panels, across=len(TRUTHS) * len(STATISTICS), x="lag", y="error / sigma")


def _mean_rms(found: Sequence[Figures], truth: str, statistic: str, name: str) -> list[float]:
    of_seeds = [one.rms[truth][statistic][name] for one in found]
    return [sum(values) / len(values) for values in zip(*of_seeds, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that the file lacks, and show all; returns the exit code."""
    options = parsed(arguments)
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    environment, interrupted = describe(), False
    try:
        runs = wanted(options)
        task = digits() if options.data is None else fashion_mnist.load(options.data)
        found = {} if options.json is None else read(options.json)
        missing = [run for run in runs if run not in found]
        with Bar(Console(stderr=True)) as bar:
            try:
                for run in missing:
                    found[run] = train(run, task)
                    if options.json is not None:
                        record = {"schema": SCHEMA, **asdict(run), **asdict(found[run])}
                        line = json.dumps(record | {"environment": environment}, allow_nan=False)
                        with options.json.open("a") as file:
                            file.write(line + "\n")
                    bar.show(sum(run in found for run in runs), len(runs), outcome(run, found[run]))
            except KeyboardInterrupt:
                interrupted = True
        if options.svg is not None:
            options.svg.write_text(plot(runs, found))
    except (RenormError, OSError) as error:
        messages.print(f"compensation: {error}")
        return USAGE
    show(runs, found, Console())
    if interrupted:
        messages.print("Interrupted. With --json, the same command does the missing runs.")
    return INTERRUPTED if interrupted else DONE


def outcome(run: Run, figures: Figures) -> str:
    """What became of a run, in a few words."""
    return (
        f"lr {run.lr:g}, norm batch {run.norm_batch}, seed {run.seed}: loss {figures.loss:.3f}, "
        f"{figures.seconds:.0f} s"
    )


def wanted(options: argparse.Namespace) -> list[Run]:
    """All runs that the options ask for, seed by seed."""
    return [
        Run(
            "digits" if options.data is None else fashion_mnist.FOLDER,
            lr,
            seed,
            norm_batch,
            options.batch,
            options.steps,
            options.every,
            options.window,
            options.draws,
        )
        for seed in range(options.seeds)
        for lr in options.lr
        for norm_batch in options.norm_batches
    ]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked as far as a single one can be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder that has fashion_mnist/ (else: scikit-learn's digits)")
    add("--lr", type=float, nargs="+", default=[0.1, 0.02], help="learning rates (0.1 0.02)")
    add("--norm-batches", type=int, nargs="+", default=[4, 8], help="examples (4 8)")
    add("--batch", type=int, default=32, help="examples of a gradient step (32)")
    add("--seeds", type=int, default=3, help="how many: 0, 1, ...; 1 gives no interval (3)")
    add("--steps", type=int, default=300, help="gradient steps a run (300)")
    add("--every", type=int, default=30, help="steps from one that is measured to the next (30)")
    add("--window", type=int, default=8, help="iterations, for lags up to one less (8)")
    add("--draws", type=int, default=100, help="samples of positions (100)")
    add("--json", type=Path, help="file of records: read first, then appended to")
    add("--svg", type=Path, help="file to draw the error against the lag in")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"seeds is how many seeds to run, at least 1, got {options.seeds}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
