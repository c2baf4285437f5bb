"""``renorm compare``: train the normalizers side by side and show the difference."""

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from renorm.cli import DONE, INTERRUPTED, SOME_FAILED
from renorm.cli.progress import Display
from renorm.errors import ArgumentError
from renorm.lab import cluster, launch
from renorm.lab.experiment import Execute, Grid, Result, complete
from renorm.lab.pool import Site, memory_share, run_all
from renorm.lab.store import Store
from renorm.lab.tasks import template
from renorm.lab.tasks.registry import fetch
from renorm.report import comparison, console, page

Names = Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")]
Rates = Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")]
WORKERS = min(2, os.cpu_count() or 1)
FACTORS = (1 / 9, 1 / 3, 1.0, 3.0)


def compare(
    *,
    task: str = "digits",
    model: str | None = None,
    normalizers: Names = None,
    conditions: Names = None,
    seeds: int = Grid.seeds,
    steps: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    group_size: int | None = None,
    sweep_lr: Annotated[bool, Parameter(negative="")] = False,
    rates: Rates = (),
    data_dir: Path | None = None,
    download: Annotated[bool, Parameter(negative="")] = False,
    out: Path = Path("compare.jsonl"),
    workers: int = WORKERS,
    memory: float | None = None,
    device: str | None = None,
    ray: str | None = None,
    init: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train the same net with each normalizer, and show where batch norm fails.

    Without options the task is scikit-learn's digits: 1,797 scanned digits of 8 x 8 pixels, a
    quarter of them for testing. Normalizers with the same seed start from the same weights and see
    the same examples in the same order, with the same learning rate unless it is searched for.

    Tasks: `digits` and `tabular` come with scikit-learn. `mnist`, `fashion_mnist`, `cifar10`,
    `omniglot` (metric learning) and `cells` (dense prediction in photographs) read files, and so
    do `mirrored_cifar10` (more images, for longer runs) and `characters` (many classes).
    `binary_digits` and `binary_mnist` are the batch norm paper's task, in black and white.
    `smooth_digits`, `smooth_cifar10` and `smooth_linear` keep figures of the loss landscape,
    `gaussian_vectors` and `gaussian_images` of fresh nets.
    `pendulum` is reinforcement learning. Your own: `--init` writes one to begin with.

    Conditions (examples that share statistics form a group; the gradient is the whole batch's):

    - `iid`: batches at random, the whole batch is one group.
    - `microbatch`: the same batches, statistics per group: small groups, nothing else.
    - `clustered`: each group is of ONE class, as workers see it whose shards are sorted. The groups
      of a batch take the classes in turn, so the gradient stays balanced: 32 examples in groups
      of 4 are 8 of the 10 digits, equally. The groups are as large as in `microbatch`.
    - `two_classes`, `four_classes`: as clustered, with two or four classes a group.
    - `twins`: two examples of each class in a group. `halved_twins`: the same batches, statistics
      per half a group, without the other of each class.
    - `accumulation`: as microbatch, each group in a forward of its own.
    - `devices`: as accumulation, each group on a device of its own: the weights are shared, running
      statistics and windows are not.
    - `pk`: group-size examples of each class, one group.
    - `sorted`: class by class; the gradient too is of one or two classes.
    - `frames`: each group is a clip of one image.
    - `shift`: as iid, tested on changed images.

    Normalizers: `batch_norm` (torch's own, as the model has it, on each group), `batch_renorm`,
    `group_norm` (4 groups), `layer_norm`, `cross_iteration`, `none`, and `slow_batch_norm` (batch
    norm with an update rate of 0.01). Of other papers: `instance_norm`, `filter_response_norm`,
    `variance_norm`, `evonorm_b0`, `evonorm_s0`, `weight_norm`, `scaled_weight_standardization`,
    `lp_batch_norm`, `noisy_batch_norm`; one that contains the nonlinearity takes the place of the
    activation after the norm, too. Options go in brackets: `"group_norm(groups=8)"`,
    `"batch_renorm(momentum=0.1, r_max=1.5)"`, `"lp_batch_norm(p=inf)"`.

    How to read the table: the score (accuracy) is what the trained net would do in use, in eval
    mode. `lead` is how far batch renorm is ahead. `gap` is how much better the same weights do on
    the same examples in train mode: a large gap means that the net learned, and that its running
    statistics do not describe it. The page beside the results has the curves.

    Results are kept: a second call does the missing runs only, so
    `renorm compare --seeds 5` after `renorm compare` adds two seeds. Runs that failed are tried
    again.

    Several processes share each run when torchrun starts them, and each machine of a Ray cluster
    does some of the runs with `--ray`; see these two below.

    To begin with:

    - `renorm compare`
    - `renorm compare --conditions clustered --seeds 10`
    - `renorm compare --normalizers batch_norm batch_renorm --group-size 2`
    - `renorm compare --init`, then `renorm compare --task my_task.py:MyTask`
    - `torchrun --nproc-per-node 2 -m renorm compare`: each run data-parallel on two processes, by
      DistributedDataParallel as it comes; each normalizes its own share of a batch, and eval
      knows rank 0's running statistics. Results are kept apart from those of one process.
    - `renorm compare --ray auto`: the runs on all machines of the Ray cluster this one belongs to

    Parameters
    ----------
    task
        What is trained: a name, or a task of your own as file.py:Name or module:Name.
    model
        Which net; the task's first without.
    normalizers
        Which normalizers: one or more of the names above; the task's own without.
    conditions
        Which conditions: one or more of the names above; the task's own without.
    seeds
        How many seeds (0, 1, ...). One gives no interval.
    steps
        Gradient steps a run, at least 10; the task's own without, as for the next three.
    lr
        Learning rate at the start; it falls to 0 along a cosine.
    batch_size
        Examples in one gradient.
    group_size
        Examples that share statistics in all conditions but iid and shift (pk: examples of each
        class); divides the batch size.
    sweep_lr
        Give each normalizer in each condition the best of several learning rates, found with one
        seed on a fifth of the training examples, held out. Test examples are not looked at.
    rates
        The learning rates to try; 1/9, 1/3, 1 and 3 times the task's own without.
    data_dir
        Folder of the data sets, as torchvision lays them out; else what the environment variable
        RENORM_DATA says, else `data`.
    download
        Have torchvision fetch what is missing there of mnist, fashion_mnist or cifar10.
    out
        Results file: JSON lines, one a run; read first, then appended to.
    workers
        Processes that train, one thread each.
    memory
        GiB of data that each process may hold; the machine's divided by workers without, where
        the system can bound it.
    device
        Where nets are trained, such as `cuda`; the CPU without. torchrun gives each process its
        own, where there are enough.
    ray
        Do the runs on a Ray cluster, one a CPU, instead of in worker processes: its address,
        `auto` for the one that this machine belongs to, or `local` for a new one of this machine
        alone, with `--workers` CPUs.
        Each machine has renorm and the data sets, at the same path. A run whose process or machine
        dies is done again elsewhere.
    init
        Write my_task.py, a small task of your own to begin with, and train nothing.
    """
    if launch.follows():
        launch.follow()
        return DONE
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if init:
        path = template.write(Path())
        messages.print(f"Wrote {path}. Now: renorm compare --task {path}:MyTask")
        return DONE
    store, page_at = Store(out), page_of(out)
    if download:
        fetch(task, data_dir)
    grid = Grid.of(
        task,
        model,
        data_dir,
        normalizers=_split(normalizers),
        conditions=_split(conditions),
        seeds=seeds,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        group_size=group_size,
        rates=rates,
        ranks=launch.world(),
    )
    if sweep_lr and not rates:
        grid = replace(grid, rates=tuple(float(f"{grid.lr * factor:.2g}") for factor in FACTORS))
    with (
        _executor(ray, workers, memory, device) as (execute, site),
        Display(Console(stderr=True)) as display,
    ):
        result = complete(grid, store, replace(site, data=data_dir), display, execute)
    return _show(grid, result, out, page_at, messages)


@contextmanager
def _executor(
    ray: str | None, workers: int, memory: float | None, device: str | None
) -> Iterator[tuple[Execute, Site]]:
    """What does the runs, and how many at a time."""
    if device is not None and (ray is not None or launch.world() > 1):
        raise ArgumentError(
            "Ray and torchrun place their processes themselves: --device goes with neither. Leave "
            "one of them out."
        )
    if ray is not None:
        if memory is not None or launch.world() > 1:
            raise ArgumentError(
                "Ray starts processes of its own and watches their memory: --ray goes neither with "
                "--memory nor with torchrun. Leave one of them out."
            )
        # Ray tells of deaths on stdout, which is for the table
        with redirect_stdout(sys.stderr), cluster.joined(ray, workers) as joined:
            yield joined.run_all, Site(workers=joined.slots)
    elif launch.world() > 1:
        with launch.led() as led:
            yield led.run_all, Site()
    else:
        bound = memory_share(workers) if memory is None and workers > 1 else memory
        yield run_all, Site(workers=workers, memory=bound, device=device)


def page_of(out: Path) -> Path:
    """Where the page goes: beside the results, never over them."""
    if out.suffix.lower() == ".html":
        raise ArgumentError(
            f"The results file has one JSON line a run, and the page with charts is written beside "
            f"it, ending in .html; got {out} for the results. Give {out.with_suffix('.jsonl')}."
        )
    return out.with_suffix(".html")


def _split(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    # not at the commas of a normalizer's options
    return tuple(part for name in names for part in re.split(r",(?![^(]*\))", name) if part.strip())


def _command(grid: Grid, out: Path) -> str:
    """The command that gives this comparison, with every setting of it."""
    single = {
        "task": grid.task.name,
        "model": grid.task.model,
        "seeds": grid.seeds,
        "steps": grid.steps,
        "lr": grid.lr,
        "batch-size": grid.batch_size,
        "group-size": grid.group_size,
        "out": out,
    }
    several = {"normalizers": grid.normalizers, "conditions": grid.conditions}
    words = ["renorm", "compare"]
    for name, value in single.items():
        words += [f"--{name}", str(value)] if value else []
    for name, values in (several | {"rates": map(str, grid.rates)}).items():
        words += [f"--{name}", *values] if values else []
    return shlex.join(words)


def _show(grid: Grid, result: Result, out: Path, at: Path, messages: Console) -> int:
    if result.warning:
        messages.print(result.warning)
    shown = comparison.compare(result.wanted, result.records.values())
    console.show(shown, Console(), grid.about())
    page.write(at, shown, result.records.values(), grid.about(), _command(grid, out))
    messages.print(f"Records: {out}\nPage: {at}")
    if result.interrupted:
        messages.print("Interrupted. Run the same command again to do the missing runs.")
        return INTERRUPTED
    return DONE if shown.complete else SOME_FAILED
