"""What a survey, the measurement behind ``renorm doctor``, costs in time and memory.

Time: the survey and plain forwards over the same batches, once in train and once in eval mode,
take turns in one process. Memory: the most that a process holds which does the survey, over that
of one which does a training step with the largest of its batches, each in a process of its own.

    python benchmarks/doctor_cost.py
    python benchmarks/doctor_cost.py --batches 32 --json doctor-cost.jsonl
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from window_cost import resident_at_most

from renorm.bench.resnet import CLASSES, resnet18
from renorm.environment import describe
from renorm.lab.isolation import isolated
from renorm.measure import survey

SCHEMA = 1
TIME, MEMORY = 3.0, 1.3  # targets, at standard depth
DEPTHS = ("quick", "standard", "deep")
TRAINING = "training step"


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        batches: that the survey is given.
        batch: examples of each.
        side: pixels of the sides of an image.
        threads: of torch.
    """

    batches: int
    batch: int
    side: int
    threads: int


@dataclass(frozen=True)
class Cost:
    """A survey of some depth.

    Args:
        depth: its name.
        seconds: of the survey, the median over turns.
        median_ratio, min_ratio: of medians and of minima, to the plain forwards.
        memory_ratio: of bytes held at most, to those of a training step; None where the platform
            does not tell.
        turns: how many.
    """

    depth: str
    seconds: float
    median_ratio: float
    min_ratio: float
    memory_ratio: float | None
    turns: int


Batch = tuple[Tensor, Tensor]


def subject(setting: Setting) -> tuple[nn.Module, list[Batch]]:
    """A ResNet-18 and its batches."""
    torch.set_num_threads(setting.threads)
    with isolated(0):
        shape = (setting.batch, 3, setting.side, setting.side)
        batches = [
            (torch.randn(shape), torch.randint(CLASSES, (setting.batch,)))
            for _ in range(setting.batches)
        ]
        return resnet18(), batches


def loss(output: Tensor, batch: Batch) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(output, batch[1])


@torch.no_grad()
def forwards(model: nn.Module, batches: Sequence[Batch]) -> None:
    """All batches, in train and in eval mode."""
    for training in (True, False):
        model.train(training)
        for images, _ in batches:
            model(images)


def times(setting: Setting, turns: int) -> dict[str, list[float]]:
    """Seconds of the plain forwards, ``""``, and of the survey of each depth, taking turns."""
    model, batches = subject(setting)
    kinds: dict[str, Callable[[], Any]] = {"": lambda: forwards(model, batches)}
    for depth in DEPTHS:
        kinds[depth] = lambda depth=depth: survey(model, batches, loss, depth=depth)
    found: dict[str, list[float]] = {name: [] for name in kinds}
    forwards(model, batches)
    for _ in range(turns):
        for name, call in kinds.items():
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
    return found


def resident(setting: Setting, what: str) -> int | None:
    """Bytes that this process, a new one, holds at most with a survey or a training step."""
    model, batches = subject(setting)
    if what == TRAINING:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        for images, labels in batches[:2]:  # the second has gradients and momentum beside it
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    else:
        survey(model, batches, loss, depth=what)
    return resident_at_most()


def held(setting: Setting) -> dict[str, int | None]:
    """``resident`` of a training step and of each depth, in processes of their own."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for what in (TRAINING, *DEPTHS):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found[what] = pool.submit(resident, setting, what).result()
    return found


def costs(setting: Setting, turns: int) -> list[Cost]:
    """Time and memory of the survey at each depth."""
    most, took = held(setting), times(setting, turns)
    base = most[TRAINING]
    return [
        Cost(
            depth,
            statistics.median(took[depth]),
            statistics.median(took[depth]) / statistics.median(took[""]),
            min(took[depth]) / min(took[""]),
            None if own is None or base is None else own / base,
            turns,
        )
        for depth in DEPTHS
        for own in (most[depth],)
    ]


def shown(setting: Setting, found: Sequence[Cost]) -> Table:
    """A row a depth."""
    table = Table(title=f"{setting.batches} batches of {setting.batch} x {setting.side} px")
    table.add_column("depth")
    for heading in ("seconds", "time", "min.", "memory"):
        table.add_column(heading, justify="right")
    for one in found:
        memory = "-" if one.memory_ratio is None else f"{one.memory_ratio:.2f}"
        ratios = (f"{one.seconds:.2f}", f"{one.median_ratio:.2f}", f"{one.min_ratio:.2f}", memory)
        table.add_row(one.depth, *ratios)
    return table


def verdict(found: Sequence[Cost]) -> str:
    """Whether the standard depth meets its targets."""
    one = next(cost for cost in found if cost.depth == "standard")
    time_met = "met" if one.median_ratio <= TIME else "not met"
    memory_met = "unknown"
    if one.memory_ratio is not None:
        memory_met = "met" if one.memory_ratio <= MEMORY else "not met"
    return (
        f"standard: time at most {TIME:g} times that of plain forwards: {time_met}; memory at most "
        f"{MEMORY:g} times that of a training step: {memory_met}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and show; returns the exit code."""
    options = parsed(arguments)
    output = Console(highlight=False)
    setting = Setting(options.batches, options.batch, options.side, options.threads)
    found = costs(setting, options.turns)
    if options.json is not None:
        where = {"environment": {**describe(), "torch": torch.__version__}}
        head = {"schema": SCHEMA, "suite": "doctor_cost"} | asdict(setting)
        with options.json.open("a") as file:
            file.writelines(json.dumps(head | asdict(one) | where) + "\n" for one in found)
    output.print(shown(setting, found))
    output.print(verdict(found), soft_wrap=True)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batches", type=int, default=16, help="that the survey is given (16)")
    add("--batch", type=int, default=16, help="examples of each (16)")
    add("--side", type=int, default=64, help="pixels of the sides of an image (64)")
    add("--turns", type=int, default=5, help="of plain forwards and each depth (5)")
    add("--threads", type=int, default=2, help="of torch (2)")
    add("--json", type=Path, help="append records to this file, one a depth")
    options = parser.parse_args(arguments)
    for name, least in {"batches": 2, "batch": 2, "side": 33, "turns": 1, "threads": 1}.items():
        if getattr(options, name) < least:
            parser.error(f"{name} is at least {least}, got {getattr(options, name)}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
