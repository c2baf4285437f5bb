"""Whether the doctor names what was planted, and finds nothing where there is nothing.

Each case is a net that is trained for seconds on real data with one planted cause, as people come
by it; the controls are healthy. A case is hit if the planted finding, or another name of the same
cause, is among the first two; a control if no finding is an error.

    python benchmarks/planted_diseases.py                      # scikit-learn's data
    python benchmarks/planted_diseases.py --only nan_buffer frozen --verbose
    python benchmarks/planted_diseases.py --fixes              # which fix helps most, too
    python benchmarks/planted_diseases.py --held-out --data-dir DIR --json runs.jsonl

Held out are variants with Fashion-MNIST, MNIST and CIFAR-10, with deeper nets and other seeds;
--data-dir has them as the readers of ``renorm.lab.data`` want it. The exit code is 1 if a case is
missed.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from planted.ground import READERS, Ground
from planted.suite import CASES, Outcome, examine
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from renorm.cli import DONE, INTERRUPTED, USAGE
from renorm.environment import describe
from renorm.errors import RenormError
from renorm.findings import Finding

SCHEMA = 1
MISSED = 1
WIDTH = 120  # so that no id is cut
EMBEDDED = "digits"
HELD_OUT = (("fashion_mnist", 1), ("mnist", 2), ("cifar10", 3))  # and seeds

Work = tuple[str, Ground, bool]
Done = tuple[Ground, Outcome, tuple[Finding, ...]]


def work(one: Work) -> Done:
    """Examine a case."""
    name, ground, fixes = one
    outcome, diagnosis = examine(CASES[name], ground, fixes=fixes)
    return ground, outcome, diagnosis.findings


def results(everything: Sequence[Work], jobs: int) -> Iterator[Done]:
    """Of all cases in order, as soon as they are there; of several processes if so asked."""
    if jobs == 1:
        yield from map(work, everything)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        try:
            yield from pool.map(work, everything)
        finally:
            pool.shutdown(cancel_futures=True)


def table(done: Sequence[Done], fixes: bool) -> Table:
    """A row for each case."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("case", "planted", "first", "second"):
        grid.add_column(heading, no_wrap=True)
    for heading in ("well", "sick", "s"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("hit", no_wrap=True)
    if fixes:
        grid.add_column("best fix", no_wrap=True)
    last = None
    for ground, outcome, _ in done:
        if last not in (None, ground):
            grid.add_section()
        last = ground
        grid.add_row(*_cells(outcome, fixes))
    return grid


def _cells(outcome: Outcome, fixes: bool) -> Iterator[str]:
    yield outcome.case
    yield outcome.planted or "(healthy)"
    found = [f"{name} {severity[0].upper()}" for name, severity in outcome.found[:2]]
    yield from [*found, "-", "-"][:2]
    for score in (outcome.well, outcome.sick):
        yield "-" if score is None else f"{score:.1f}"
    yield f"{outcome.diagnosis:.1f}"
    yield "yes" if outcome.hit else "MISSED"
    if fixes:
        wrong = "" if outcome.cured in (None, True) else " (WRONG)"
        yield f"{outcome.fix or '-'}{wrong}"


LEGEND = (
    "first, second: the worst findings; E: error, W: warning, N: note. "
    "well, sick: % right in eval mode on data held out, without and with the planted cause (video, "
    "dense: % of the variance explained; contrastive: % probability of the other part; a control "
    "has one of them). s: seconds that the doctor took."
)


def summed(done: Sequence[Done]) -> str:
    """How many were hit, and the worst that was said of a control."""
    sick = [one for _, one, _ in done if one.planted is not None]
    worst = {severity for _, one, _ in done if one.planted is None for _, severity in one.found}
    said = next((one for one in ("error", "warning", "note") if one in worst), "nothing")
    first = sum(bool(one.found) and one.found[0][0] == one.planted for one in sick)
    hits = sum(one.hit for one in sick)
    return (
        f"{len(sick)} diseases: {hits} found, {first} of them first. "
        f"{len(done) - len(sick)} controls: the worst is {said}."
    )


def record(one: Done, environment: dict[str, str | None]) -> str:
    """A line of JSON."""
    ground, outcome, findings = one
    titles = {"titles": [finding.title for finding in findings[:2]]}
    where = {"data": ground.data, "seed": ground.seed, "deep": ground.deep}
    found = {"schema": SCHEMA, **where, **asdict(outcome), **titles, "environment": environment}
    return json.dumps(found, allow_nan=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print the table, and keep records if asked to; returns the exit code."""
    options = parsed(arguments)
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    environment, done, interrupted = describe(), [], False
    try:
        everything = wanted(options)
        for _, ground, _ in everything:
            _ = ground.images  # what is missing is missed before the work
        for one in results(everything, options.jobs):
            done.append(one)
            report(one, messages, options.verbose)
            if options.json is not None:
                with options.json.open("a") as file:
                    file.write(record(one, environment) + "\n")
    except (RenormError, OSError) as error:
        messages.print(f"planted_diseases: {error}")
        return USAGE
    except KeyboardInterrupt:
        interrupted = True
    console.print(table(done, options.fixes))
    console.print(f"\n{LEGEND}\n{summed(done)}")
    if interrupted:
        return INTERRUPTED
    return DONE if all(one.hit and one.cured is not False for _, one, _ in done) else MISSED


def report(one: Done, messages: Console, verbose: bool) -> None:
    """Say what became of a case, and of all findings if so asked."""
    ground, outcome, findings = one
    what = "hit" if outcome.hit else "MISSED"
    messages.print(f"{ground.data} {ground.seed} {outcome.case}: {what}")
    if verbose:
        for name, gain in outcome.gains:
            messages.print(f"    {name}: {'no gain known' if gain is None else f'{gain:+.3g}'}")
        for finding in findings:
            layers = ", ".join(finding.layers[:4])
            messages.print(f"    {finding.severity} {finding.id} [{layers}]: {finding.title}")


def wanted(options: argparse.Namespace) -> list[Work]:
    """All cases that the options ask for."""
    grounds = [Ground(EMBEDDED, options.seed, False, options.data_dir)]
    if options.held_out:
        names = options.held_out_data or [name for name, _ in HELD_OUT]
        grounds = [Ground(n, s, True, options.data_dir) for n, s in HELD_OUT if n in names]
    return [(name, ground, options.fixes) for ground in grounds for name in options.only or CASES]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options.

    Raises:
        SystemExit: they make no sense, or help was asked for.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=list(CASES), metavar="CASE", help="names of cases (all)")
    add("--seed", type=int, default=0, help="of weights and orders; those held out have theirs (0)")
    add("--held-out", action="store_true", help="the variants instead of scikit-learn's data")
    add("--held-out-data", nargs="+", choices=sorted(READERS), help="some of them (all)")
    add("--data-dir", type=Path, help="folder of the data that are held out")
    add("--fixes", action="store_true", help="try fixes, and judge which is ranked first")
    add("--jobs", type=int, default=1, help="processes, of one thread each (1)")
    add("--verbose", action="store_true", help="say all findings of each case")
    add("--json", type=Path, help="file that records are appended to")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"jobs is at least 1, got {options.jobs}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
