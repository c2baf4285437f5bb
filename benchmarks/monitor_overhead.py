"""What renorm.measure.Monitor costs a training step, and so a training.

A ResNet-18, with nn.BatchNorm and with batch renorm, takes training steps without a monitor, with
one that observes another step than these, and with one that observes each. They take turns in one
process. Where one step in so many is observed, a training takes longer by::

    ((every - 1) * unobserved + observed) / (every * without) - 1

    python benchmarks/monitor_overhead.py
    python benchmarks/monitor_overhead.py --turns 60 --json benchmarks/results/monitor.jsonl
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from renorm.bench import allocator, resnet, timing
from renorm.bench.providers import AUTO, ours
from renorm.environment import describe
from renorm.errors import RecordError
from renorm.lab.isolation import isolated
from renorm.measure import Monitor

SCHEMA = 1
TARGET = 2.0  # % that a training may take longer
NEVER = 10**9
WITHOUT, UNOBSERVED, OBSERVED = "without", "unobserved", "observed"
LEGEND = (
    "ms: of a step, the median over turns. ratio, min.: of medians and of minima, to the step "
    "without a monitor. *: median above twice the minimum, disturbed, measure again."
)


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        net: ``nn.BatchNorm`` or ``renorm``.
        batch: examples of a step.
        side: pixels of the sides of an image.
        device: ``cpu`` or ``cuda``.
        threads: of torch.
        every: steps of which one is observed.
    """

    net: str
    batch: int
    side: int
    device: str
    threads: int
    every: int


@dataclass(frozen=True)
class Cost:
    """A kind of step.

    Args:
        step: ``without``, ``unobserved`` or ``observed``.
        median_ms, min_ms: of a step, over turns.
        median_ratio, min_ratio: of medians and of minima, to the step without a monitor.
        turns: how many.
    """

    step: str
    median_ms: float
    min_ms: float
    median_ratio: float
    min_ratio: float
    turns: int

    @property
    def steady(self) -> bool:
        """Whether the machine had time for this, as in the records of ``renorm bench``."""
        return self.median_ms <= 2 * self.min_ms


def longer(costs: Sequence[Cost], every: int, key: str = "median_ratio") -> float:
    """By how many % a training takes longer in which one step in ``every`` is observed.

    Args:
        costs: of the three kinds of steps.
        every: steps, at least 1.
        key: which ratio.

    >>> costs = [Cost(kind, 0, 0, ratio, 0, 1) for kind, ratio in zip(
    ...     (WITHOUT, UNOBSERVED, OBSERVED), (1.0, 1.0, 1.5))]
    >>> round(longer(costs, 50), 6)
    1.0
    """
    ratios = {cost.step: getattr(cost, key) for cost in costs}
    return 100 * (((every - 1) * ratios[UNOBSERVED] + ratios[OBSERVED]) / every - 1)


def costs(setting: Setting, make: Any, turns: int) -> list[Cost]:
    """Steps of the three kinds, taking turns; each with a net of its own."""
    torch.set_num_threads(setting.threads)
    clock = timing.clock(setting.device)
    with isolated(0):
        images = torch.randn(setting.batch, 3, setting.side, setting.side).to(setting.device)
    nets: dict[str, nn.Module] = {
        kind: make().to(setting.device) for kind in (WITHOUT, UNOBSERVED, OBSERVED)
    }
    steps = {kind: resnet.step_of(net, images) for kind, net in nets.items()}
    with (
        Monitor(nets[UNOBSERVED], every=NEVER) as idle,
        Monitor(nets[OBSERVED], every=1, keep=1) as busy,
    ):
        steps[UNOBSERVED] = monitored(steps[UNOBSERVED], idle)
        steps[OBSERVED] = monitored(steps[OBSERVED], busy)
        found, turns = timing.interleaved(steps, clock, 0.0, turns)
    both = {kind: timing.summarized(own)["both"] for kind, own in found.items()}
    base = both[WITHOUT]
    return [
        Cost(
            kind,
            own.median,
            own.minimum,
            own.median / base.median,
            own.minimum / base.minimum,
            turns,
        )
        for kind, own in both.items()
    ]


def monitored(step: timing.Step, monitor: Monitor) -> timing.Step:
    """The step with what its monitor does at its end."""

    def longer_step(clock: timing.Clock) -> timing.Marks:
        start, middle, _ = step(clock)
        monitor.step()
        return [start, middle, clock.mark()]

    return longer_step


def shown(setting: Setting, found: Sequence[Cost]) -> Table:
    """A row a kind of step."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    grid.add_column(f"{setting.net}, batch {setting.batch}", no_wrap=True)
    for heading in ("ms", "ratio", "min."):
        grid.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        grid.add_row(
            one.step + ("" if one.steady else "*"),
            f"{one.median_ms:.1f}",
            f"{one.median_ratio:.3f}",
            f"{one.min_ratio:.3f}",
        )
    return grid


def verdict(setting: Setting, found: Sequence[Cost]) -> str:
    """How much longer a training takes, and whether that is within the target."""
    by_median = longer(found, setting.every)
    by_minimum = longer(found, setting.every, "min_ratio")
    judged = "not judged"
    if all(one.steady for one in found):
        judged = "met" if by_median <= TARGET else "not met"
    return (
        f"one step in {setting.every} observed: {by_median:+.2f} % by medians, {by_minimum:+.2f} % "
        f"by minima (target at most {TARGET:g} %: {judged})"
    )


def append(path: Path, setting: Setting, found: Sequence[Cost], kept: str) -> None:
    """Write a line for each.

    Raises:
        RecordError: the file cannot be written.
    """
    where = {"allocator": kept, "environment": {**describe(), "torch": torch.__version__}}
    head = {"schema": SCHEMA, "suite": "monitor"}
    try:
        with path.open("a") as file:
            for one in found:
                line = head | asdict(setting) | asdict(one) | where
                file.write(json.dumps(line, allow_nan=False) + "\n")
    except OSError as error:
        raise RecordError(
            f"The results file {path} cannot be used: {error.strerror}. Give another file, in a "
            "folder that is there."
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and show; returns the exit code."""
    options = parsed(arguments)
    output = Console(highlight=False)
    on_cpu = options.device == "cpu"
    kept = allocator.keep_freed_pages() if on_cpu else "that of torch for CUDA"
    try:
        for batch in options.batches:
            for net, make in resnet.variants(ours(AUTO)).items():
                sizes = (batch, options.side, options.device, options.threads, options.every)
                setting = Setting(net, *sizes)
                found = costs(setting, make, options.turns)
                if options.json is not None:
                    append(options.json, setting, found, kept)
                output.print(shown(setting, found))
                output.print(verdict(setting, found), soft_wrap=True)
                output.print()
    except RecordError as error:
        print(f"monitor_overhead: {error}", file=sys.stderr)
        return 2
    output.print(LEGEND)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked as far as a single one can be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batches", type=int, nargs="+", default=[4, 16], help="examples of a step (4 16)")
    add("--side", type=int, default=64, help="pixels of the sides of an image (64)")
    add("--turns", type=int, default=30, help="steps of each kind that are timed (30)")
    add("--threads", type=int, default=2, help="of torch (2)")
    add("--every", type=int, default=50, help="steps of which one is observed (50)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    add("--json", type=Path, help="append records to this file, one a kind of step")
    options = parser.parse_args(arguments)
    lowest = {"side": 33, "turns": 1, "threads": 1, "every": 1}
    for name, least in lowest.items():
        if getattr(options, name) < least:
            parser.error(f"{name} is at least {least}, got {getattr(options, name)}.")
    if min(options.batches) < 1:
        parser.error(f"batches have an example at least, got {min(options.batches)}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
