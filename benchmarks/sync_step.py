"""What sharing statistics costs a training step: gloo processes on this machine, with a latency.

A ResNet-20 is trained by DistributedDataParallel with nn.BatchNorm, and with batch renorm that
shares nothing, the running statistics, or those of each batch. The providers take turns, block by
block, in the same processes. Each collective takes at least a given latency, which is slept where
it is waited for: ``sync_latency.py`` says why that is honest, and what it is not. That the layers
compute what they should is for ``tests/distributed`` to say; here they are only timed.

    python benchmarks/sync_step.py
    python benchmarks/sync_step.py --processes 2 --latency 0 1 --blocks 4
    python benchmarks/sync_step.py --json benchmarks/results/sync-2-cores.jsonl
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import sync_records
import torch
from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sync_latency import BUFFERS, GRADIENTS, STATISTICS
from sync_records import Row
from sync_worker import NO_BROADCAST, Outcome, Plan, work

from renorm.cli import DONE, INTERRUPTED, SOME_FAILED, USAGE
from renorm.cli.progress import Bar
from renorm.environment import describe
from renorm.errors import ArgumentError, CollectiveError, RenormError

_SEVERAL = Parameter(consume_multiple=True, negative="")
LEGEND = (
    "ms: of a step, the median over blocks of the slowest process. ratio, min.: of medians and "
    "of minima, to the first row. added: ms more than it. Then what each process sends off in a "
    "step: collectives for statistics, gradients and buffers (torch's default, a broadcast before "
    f"each forward, but for: {NO_BROADCAST}), and kB of statistics."
)


def run(plan: Plan, show: Callable[[int], None] = lambda turn: None) -> list[Outcome]:
    """What each process of a new group measures; all of them have ended afterwards.

    Args:
        plan: what.
        show: called with the number of turns that are done.

    Raises:
        CollectiveError: a process failed, or died.
    """
    context = multiprocessing.get_context("spawn")
    outcomes: dict[int, Outcome] = {}
    processes, pipes = [], {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(plan.processes):
                ours, theirs = context.Pipe(duplex=False)
                file = str(Path(folder) / "store")
                process = context.Process(target=work, args=(rank, plan, file, theirs), daemon=True)
                process.start()
                theirs.close()
                processes.append(process)
                pipes[ours] = rank
            while len(outcomes) < plan.processes:
                for pipe in wait([p for p, rank in pipes.items() if rank not in outcomes]):
                    kind, content = _received(pipe, pipes[pipe])
                    if kind == "done":
                        outcomes[pipes[pipe]] = content
                    elif pipes[pipe] == 0:
                        show(content)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()
    return [outcomes[rank] for rank in range(plan.processes)]


def _received(pipe: Any, rank: int) -> tuple[str, Any]:
    try:
        kind, content = pipe.recv()
    except EOFError:
        raise CollectiveError(
            f"Process {rank} has died without a word, so the others wait in vain. Measure again; "
            "if it was ended for its memory, take fewer --processes."
        ) from None
    if kind == "failed":
        raise CollectiveError(f"Process {rank} failed, and the others with it:\n{content}")
    return kind, content


def show_rows(rows: list[Row], console: Console) -> None:
    """Print a table a number of processes and latency."""
    for key in dict.fromkeys((r.processes, r.latency_ms) for r in rows):
        own = [r for r in rows if (r.processes, r.latency_ms) == key]
        _show_one(own, console)
    console.print(LEGEND, highlight=False, markup=False)
    if not all(row.steady for row in rows):
        console.print("* median above twice the minimum: disturbed, measure again", markup=False)


def _show_one(rows: list[Row], console: Console) -> None:
    first = rows[0]
    title = f"{first.processes} processes on {first.cores} cores, {first.latency_ms:g} ms"
    if first.processes > first.cores:
        title += ", so the arithmetic takes turns on a core, and who waits for it, too"
    console.print(title, style="bold", highlight=False)
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    grid.add_column("", no_wrap=True)
    for heading in ("ms", "ratio", "min.", "added", "stat", "grad", "buf", "kB"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        grid.add_row(
            row.provider + ("" if row.steady else "*"),
            f"{row.median_ms:.1f}",
            f"{row.median_ratio:.2f}",
            f"{row.min_ratio:.2f}",
            f"{row.median_ms - first.median_ms:.1f}",
            *(str(row.collectives[kind]) for kind in (STATISTICS, GRADIENTS, BUFFERS)),
            f"{row.bytes[STATISTICS] / 1e3:.1f}",
        )
    console.print(grid)
    alone = f"a small sum that all wait for, with nothing between: {first.exchange_ms:.2f} ms"
    console.print(f"  {alone}", highlight=False)
    console.print()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(
    *,
    processes: Annotated[tuple[int, ...], _SEVERAL] = (2, 4),
    latency: Annotated[tuple[float, ...], _SEVERAL] = (0.0, 1.0, 10.0),
    blocks: int = 12,
    steps: int = 4,
    net: int = 3,
    batch: int = 8,
    side: int = 32,
    json: Path | None = None,
) -> int:
    """Measure the training step with each way of sharing statistics, as a ratio to plain DDP.

    Parameters
    ----------
    processes
        How many, one group after the other.
    latency
        Of each collective, in ms.
    blocks
        Turns of each provider at each latency.
    steps
        Training steps in a block.
    net
        Residual blocks in each of the three stages; 3 make ResNet-20.
    batch
        Examples of each process.
    side
        Pixels of the sides of an image, at least 8.
    json
        Append records to this file: JSON lines, one a row.
    """
    for name, least, values in (
        ("processes", 2, processes),
        ("latency", 0, latency),
        ("blocks", 1, (blocks,)),
        ("steps", 1, (steps,)),
        ("net", 1, (net,)),
        ("batch", 2, (batch,)),
        ("side", 8, (side,)),
    ):
        _check(name, values, least)
    plans = [Plan(n, latency, blocks, steps, net, batch, side) for n in processes]
    if json is not None:
        sync_records.append(json, [])
    environment = {**describe(), "torch": torch.__version__}
    found: list[Row] = []
    with Bar(Console(stderr=True)) as bar:
        for i, plan in enumerate(plans):

            def show(turn: int, before: int = i * blocks, who: int = plan.processes) -> None:
                bar.show(before + turn, len(plans) * blocks, f"{who} processes")

            show(0)
            rows = sync_records.rows(plan, run(plan, show), cores(), environment)
            found += rows
            if json is not None:
                sync_records.append(json, rows)
    show_rows(found, Console())
    return DONE


def _check(name: str, values: Sequence[float], least: int) -> None:
    if not values or not all(least <= value < float("inf") for value in values):
        raise ArgumentError(
            f"--{name} is at least {least}, got {' '.join(map(str, values)) or 'nothing'}. "
            "--help lists the settings."
        )


def command_line() -> int:
    """Run ``main`` as the arguments of this process say; returns the exit code."""
    app = cyclopts.App(
        default_command=main,
        version_flags=(),
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    try:
        return int(app(exit_on_error=False, print_error=False) or DONE)
    except KeyboardInterrupt:
        sys.stderr.write("sync_step: interrupted; all processes have ended\n")
        return INTERRUPTED
    except (RenormError, cyclopts.CycloptsError) as error:
        sys.stderr.write(f"sync_step: {error}\n")
        return SOME_FAILED if isinstance(error, CollectiveError) else USAGE


if __name__ == "__main__":
    sys.exit(command_line())
