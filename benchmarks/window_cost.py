"""What cross-iteration batch norm costs a training step: time, and memory for past iterations.

A ResNet-18 is trained with nn.BatchNorm, with cross-iteration layers by each compensation, and with
the formulation of the authors' code (``window_cost_official.py``), which differentiates by all
weights in every layer. All start from the same weights. For the time they take turns in one
process, after their windows are full, so that a change of the machine's speed meets all alike;
freed pages stay with the process, as in ``renorm bench``. For the memory each has a fresh process:
``peak`` is the most that was resident at any time, less that of nn.BatchNorm.

    python benchmarks/window_cost.py
    python benchmarks/window_cost.py --batches 16 --turns 60 --json benchmarks/results/window.jsonl

The net is torchvision's if that can be imported, else the one of ``renorm bench``, which is the
same but for ReLU in place.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import window_cost_official
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import renorm
from renorm.bench import allocator, resnet, timing
from renorm.cli import DONE, INTERRUPTED, USAGE
from renorm.cli.progress import Bar
from renorm.environment import describe
from renorm.errors import ArgumentError, RecordError, RenormError
from renorm.lab.isolation import isolated

SCHEMA = 1
BASELINE, OFFICIAL = "nn.BatchNorm", "official"
OURS: dict[str, dict[str, Any]] = {
    "none": {"compensation": "none"},
    "first_order": {"compensation": "first_order"},
    "exact_16": {"compensation": "exact", "sample": 16},
    "exact_8": {"compensation": "exact", "sample": 8},
}
PROVIDERS = (BASELINE, *OURS, OFFICIAL)
NETS = ("torchvision", "renorm")
LEGEND = (
    "ms: of a step, the median over turns. ratio, min.: of medians and of minima, to the first "
    "row. added: % of its median. of official: what is added, in % of what the official "
    "formulation adds. MiB of the history: by its formula, and of the tensors that are there; in % "
    "of (window - 1) x 3 x weights x 4 bytes. peak: MiB resident above the first row."
)


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        net: whose ResNet-18.
        batch: examples of a step.
        side: pixels of the sides of an image.
        window: iterations in the statistics.
        threads: of torch.
    """

    net: str
    batch: int
    side: int
    window: int
    threads: int


@dataclass(frozen=True)
class Time:
    """The training step of one provider.

    Args:
        provider: name in ``PROVIDERS``.
        median_ms, min_ms: of a step, over turns.
        median_ratio, min_ratio: of medians and of minima, to the baseline's.
        turns: how many.
    """

    provider: str
    median_ms: float
    min_ms: float
    median_ratio: float
    min_ratio: float
    turns: int

    @property
    def steady(self) -> bool:
        """Whether the machine had time for this, as in the records of ``renorm bench``."""
        return self.median_ms <= 2 * self.min_ms


@dataclass(frozen=True)
class Memory:
    """What one provider keeps of past iterations.

    Args:
        provider: name in ``PROVIDERS``.
        formula: bytes, as they are said to be.
        tensors: bytes of the storages that are there when the window is full.
        official: (window - 1) x 3 x weights x 4 bytes.
        peak: bytes resident at most; None where the platform does not tell.
    """

    provider: str
    formula: int
    tensors: int
    official: int
    peak: int | None


def available() -> str:
    """Whose net is taken if nobody says."""
    try:
        import torchvision.models  # noqa: F401
    except (ImportError, RuntimeError):  # the latter where it is built for another torch
        return "renorm"
    return "torchvision"


def plain(net: str) -> nn.Module:
    """The net with nn.BatchNorm; always from the same weights."""
    with isolated(0):
        if net == "renorm":
            return resnet.resnet18()
        from torchvision.models import resnet18

        return resnet18(num_classes=resnet.CLASSES)


def build(setting: Setting, provider: str) -> nn.Module:
    """The net of a provider."""
    model = plain(setting.net)
    example = torch.zeros(2, 3, setting.side, setting.side)
    if provider == BASELINE:
        return model
    if provider == OFFICIAL:
        return window_cost_official.converted(model, setting.window, example)
    return renorm.convert(
        model,
        to="cross_iteration",
        window=setting.window,
        history="save",  # which costs a step nothing, and has the tensors in the state_dict
        example=example,
        **OURS[provider],
    )


def images(setting: Setting) -> Tensor:
    """A batch of noise."""
    with isolated(0):
        return torch.randn(setting.batch, 3, setting.side, setting.side)


def times(setting: Setting, turns: int) -> list[Time]:
    """The steps of all providers, taking turns."""
    torch.set_num_threads(setting.threads)
    batch, clock = images(setting), timing.Clock()
    steps = {name: resnet.step_of(build(setting, name), batch) for name in PROVIDERS}
    for step in steps.values():
        for _ in range(setting.window):
            step(clock)
    found, turns = timing.interleaved(steps, clock, 0.0, turns)
    both = {name: timing.summarized(own)["both"] for name, own in found.items()}
    base = both[BASELINE]
    return [
        Time(
            name,
            own.median,
            own.minimum,
            own.median / base.median,
            own.minimum / base.minimum,
            turns,
        )
        for name, own in both.items()
    ]


def memory(setting: Setting, provider: str) -> Memory:
    """What this process, in which nothing else was done, needs for a provider."""
    torch.set_num_threads(setting.threads)
    model = build(setting, provider)
    step = resnet.step_of(model, images(setting))
    for _ in range(setting.window + 1):
        step(timing.Clock())
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    official = (setting.window - 1) * 3 * weights * 4
    peak = resident_at_most()
    if provider == OFFICIAL:
        kept = (m for m in model.modules() if hasattr(m, "past"))
        tensors = sum(m.history_bytes() for m in kept)  # type: ignore[operator]
        return Memory(provider, official, tensors, official, peak)
    formula = sum(row.history for row in renorm.summary(model).rows)
    return Memory(provider, formula, _storages(model.state_dict()), official, peak)


def _storages(state: Mapping[str, Any]) -> int:
    """Bytes of the histories in a state_dict, less the few of what the host knows."""
    histories = [entry for key, entry in state.items() if key.endswith("_extra_state")]
    kept = [t for history in histories for name, t in history.items() if name != "host"]
    storages = [t.untyped_storage() for t in kept]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def resident_at_most() -> int | None:
    """Bytes of this process, since it began; None without a Linux kernel that tells.

    ``resource.getrusage`` would have, in a new process, the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else None


def afresh(setting: Setting, provider: str) -> Memory:
    """``memory`` in a process of its own.

    Raises:
        ArgumentError: that process was ended.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(memory, setting, provider).result()
    except BrokenProcessPool as error:
        raise ArgumentError(
            f"The process of {provider} has died without a word. If it was ended for its memory, "
            "take a smaller --window, or --only-time."
        ) from error


def time_table(found: Sequence[Time]) -> Table:
    """A row a provider."""
    grid = _grid("", "ms", "ratio", "min.", "added", "of official")
    official = next(t.median_ratio for t in found if t.provider == OFFICIAL) - 1
    for one in found:
        added = one.median_ratio - 1
        cells = ["-", "-"]
        if one.provider != BASELINE:
            cells = [f"{100 * added:.1f}", f"{100 * added / official:.0f}" if official > 0 else "-"]
        grid.add_row(
            one.provider + ("" if one.steady else "*"),
            f"{one.median_ms:.1f}",
            f"{one.median_ratio:.3f}",
            f"{one.min_ratio:.3f}",
            *cells,
        )
    return grid


def memory_table(found: Sequence[Memory]) -> Table:
    """A row a provider."""
    grid = _grid("", "formula", "tensors", "of official", "peak")
    base = next(m.peak for m in found if m.provider == BASELINE)
    for one in found:
        known = base is not None and one.peak is not None
        grid.add_row(
            one.provider,
            f"{one.formula / 2**20:.1f}",
            f"{one.tensors / 2**20:.1f}",
            f"{100 * one.tensors / one.official:.1f}",
            f"{(one.peak - base) / 2**20:.0f}" if known else "-",  # type: ignore[operator]
        )
    return grid


def _grid(first: str, *headings: str) -> Table:
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    grid.add_column(first, no_wrap=True)
    for heading in headings:
        grid.add_column(heading, justify="right", no_wrap=True)
    return grid


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and show; returns the exit code."""
    options = parsed(arguments)
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    output = Console()
    try:
        for setting, found in measured(options):
            where = f"{setting.net}'s ResNet-18, {setting.side} x {setting.side}, batch "
            where += f"{setting.batch}, window {setting.window}, {setting.threads} threads"
            output.print(where, style="bold", highlight=False)
            if isinstance(found[0], Time):
                rows = [one for one in found if isinstance(one, Time)]
                output.print(time_table(rows))
                if not all(row.steady for row in rows):
                    output.print("* median above twice the minimum: disturbed, measure again")
            else:
                output.print(memory_table([one for one in found if isinstance(one, Memory)]))
            output.print()
    except KeyboardInterrupt:
        messages.print("window_cost: interrupted")
        return INTERRUPTED
    except RenormError as error:
        messages.print(f"window_cost: {error}")
        return USAGE
    output.print(LEGEND, highlight=False)
    return DONE


def measured(
    options: argparse.Namespace,
) -> Iterator[tuple[Setting, Sequence[Time] | Sequence[Memory]]]:
    """Memory with the first batch size, then times with each; all kept in the file."""
    sides = (options.side, options.window, options.threads)
    settings = [Setting(options.net, batch, *sides) for batch in options.batches]
    kept = "as torch does"
    append(options.json, settings[0], [], kept)
    with Bar(Console(stderr=True)) as bar:
        if not options.only_time:
            found = []
            for i, provider in enumerate(PROVIDERS):
                bar.show(i, len(PROVIDERS), f"memory, {provider}")
                found.append(afresh(settings[0], provider))
            append(options.json, settings[0], found, kept)
            yield settings[0], found
        kept = allocator.keep_freed_pages()
        for i, setting in enumerate(settings):
            bar.show(i, len(settings), f"time, batch {setting.batch}")
            took = times(setting, options.turns)
            append(options.json, setting, took, kept)
            yield setting, took


def append(
    path: Path | None, setting: Setting, found: Sequence[Time] | Sequence[Memory], kept: str
) -> None:
    """Write a line for each; none makes sure that the file can be written.

    Raises:
        RecordError: it cannot.
    """
    if path is None:
        return
    where = {"allocator": kept, "environment": {**describe(), "torch": torch.__version__}}
    lines = [
        {"schema": SCHEMA, "suite": f"window_{type(one).__name__.lower()}"}
        | asdict(setting)
        | asdict(one)
        | where
        for one in found
    ]
    try:
        with path.open("a") as file:
            file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    except OSError as error:
        raise RecordError(
            f"The results file {path} cannot be used: {error.strerror}. Give another file, in a "
            "folder that is there."
        ) from error


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked as far as a single one can be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batches", type=int, nargs="+", default=[4, 16], help="examples of a step (4 16)")
    add("--side", type=int, default=64, help="pixels of the sides of an image (64)")
    add("--window", type=int, default=8, help="iterations in the statistics (8)")
    add("--turns", type=int, default=30, help="steps of each that are timed (30)")
    add("--threads", type=int, default=2, help="of torch (2)")
    add("--net", choices=NETS, default=available(), help=f"whose ({available()})")
    add("--only-time", action="store_true", help="leave the memory out")
    add("--json", type=Path, help="append records to this file, one a provider")
    options = parser.parse_args(arguments)
    lowest = {"side": 33, "window": 2, "turns": 1, "threads": 1}
    for name, least in lowest.items():
        if getattr(options, name) < least:
            parser.error(f"{name} is at least {least}, got {getattr(options, name)}.")
    if min(options.batches) < 1:
        parser.error(f"batches have an example at least, got {min(options.batches)}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
