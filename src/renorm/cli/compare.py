"""``renorm compare``: train the normalizers side by side and show the difference."""

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from renorm.cli import DONE, INTERRUPTED, SOME_FAILED
from renorm.cli.progress import Display
from renorm.lab.experiment import DEFAULT_CONDITIONS, DEFAULT_NORMALIZERS, Grid, Result, complete
from renorm.lab.store import Store
from renorm.report import comparison, console

Names = Annotated[
    tuple[str, ...],
    Parameter(consume_multiple=True, negative="", show_default=" ".join),
]
WORKERS = min(2, os.cpu_count() or 1)


def compare(
    *,
    normalizers: Names = DEFAULT_NORMALIZERS,
    conditions: Names = DEFAULT_CONDITIONS,
    seeds: int = Grid.seeds,
    steps: int = Grid.steps,
    lr: float = Grid.lr,
    batch_size: int = Grid.batch_size,
    group_size: int = Grid.group_size,
    out: Path = Path("compare.jsonl"),
    workers: int = WORKERS,
) -> int:
    """Train the same small net with each normalizer, and show where batch norm fails.

    The task is scikit-learn's digits: 1,797 scanned digits of 8 x 8 pixels, a quarter of them for
    testing. Normalizers with the same seed start from the same weights and see the same examples
    in the same order, with the same learning rate.

    Conditions (examples that share statistics form a group; the gradient is the whole batch's):

    - `iid`: batches at random, the whole batch is one group.
    - `microbatch`: the same batches, statistics per group: small groups, nothing else.
    - `clustered`: each group is of ONE class, as workers see it whose shards are sorted. The groups
      of a batch take the classes in turn, so the gradient stays balanced: 32 examples in groups
      of 4 are 8 of the 10 digits, equally. The groups are as large as in `microbatch`.
    - `two_classes`: as clustered, with two classes a group. Not in the default: digits are too
      easy to show a difference there.

    Normalizers: `batch_norm` (torch's own, with its defaults, on each group), `batch_renorm`,
    `group_norm`, and `slow_batch_norm` (batch norm with batch renorm's update rate of 0.01).

    How to read the table: `accuracy` is what the trained net would do in use, in eval mode. `gap`
    is how much better the same weights do on the same images in train mode: a large gap
    means that the net learned, and that its running statistics do not describe it.

    Results are kept: a second call does the missing runs only, so
    `renorm compare --seeds 5` after `renorm compare` adds two seeds.

    To begin with:

    - `renorm compare`
    - `renorm compare --conditions clustered --seeds 10`
    - `renorm compare --normalizers batch_norm batch_renorm --group-size 2`

    Parameters
    ----------
    normalizers
        Which normalizers: one or more of the names above.
    conditions
        Which conditions: one or more of the names above.
    seeds
        How many seeds (0, 1, ...). One gives no interval.
    steps
        Gradient steps a run, at least 10.
    lr
        Learning rate at the start; it falls to 0 along a cosine.
    batch_size
        Examples in one gradient.
    group_size
        Examples that share statistics in all conditions but iid; divides the batch size.
    out
        Results file: JSON lines, one a run; read first, then appended to.
    workers
        Processes that train, one thread each.
    """
    grid = Grid(_split(normalizers), _split(conditions), seeds, steps, lr, batch_size, group_size)
    with Display(Console(stderr=True)) as display:
        result = complete(grid, Store(out), workers, display)
    return _show(grid, result, out)


def _split(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for name in names for part in name.split(",") if part.strip())


def _show(grid: Grid, result: Result, out: Path) -> int:
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if result.warning:
        messages.print(result.warning)
    shown = comparison.compare(grid.specifications(), result.records.values(), result.failures)
    console.show(shown, Console(), grid.about())
    messages.print(f"Records: {out}")
    if result.interrupted:
        messages.print("Interrupted. Run the same command again to do the missing runs.")
        return INTERRUPTED
    return DONE if shown.complete else SOME_FAILED
