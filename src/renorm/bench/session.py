"""A whole run: plan, gate, measurements, records; Ctrl-C ends it and keeps what there is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from renorm.bench import allocator, measurements
from renorm.bench.gate import refusal
from renorm.bench.measurements import Setting
from renorm.bench.peers import KNOWN, Peer, UnavailableError, admitted, by_path
from renorm.bench.providers import AUTO, Provider, baseline, kernel_for, ours
from renorm.bench.records import Record
from renorm.bench.registry import SUITES, Shape, Suite
from renorm.errors import ArgumentError
from renorm.names import known


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        suites: names from the registry; all of the device if empty.
        kernels: of ours: "auto" for the one that is chosen, or names of kernels; "moving" for the
            layer whose backward pass takes moving averages.
        peers: classes as ``package.module:Class``, beside those that are known.
        device: "cpu" or "cuda".
        full: all shapes, and longer.
        turns: how many for each shape; None for as many as the time allows.

    Raises:
        ArgumentError: a name that is not there, or a device that is not.
    """

    suites: tuple[str, ...] = ()
    kernels: tuple[str, ...] = (AUTO,)
    peers: tuple[str, ...] = ()
    device: str = "cpu"
    full: bool = False
    turns: int | None = None

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ArgumentError(f"device is cpu or cuda, got {self.device!r}.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ArgumentError("device is cuda, but torch sees no CUDA device here. Take cpu.")
        if self.turns is not None and self.turns < 1:
            raise ArgumentError(f"repeats is how many turns, at least 1, got {self.turns}.")
        there = [name for name, suite in SUITES.items() if suite.device == self.device]
        names = known("suite", self.suites or there, SUITES)
        for name in names:
            if name not in there:
                raise ArgumentError(
                    f"The suite {name} is for {SUITES[name].device}. Pass --device "
                    f"{SUITES[name].device}, or one of {', '.join(there)}."
                )
        object.__setattr__(self, "suites", names)

    @property
    def seconds(self) -> float:
        """About how long each shape is measured."""
        if self.device == "cuda":  # a turn is shorter there, and there are more shapes
            return 0.6
        return 2.0 if self.full else 0.6


@dataclass(frozen=True)
class Progress:
    """Where a run stands: what is about to be measured."""

    done: int
    total: int
    now: str


@dataclass
class Report:
    """What came out, suite by suite.

    Args:
        plan: what was asked for.
        setting: where it was measured.
        records: by suite.
        absent: by suite, "who: why not".
        deviations: by suite and peer, of the first output from the paper's formula.
        refused: layers of ours that are wrong, or that do not take what was asked for.
        interrupted: whether Ctrl-C ended it.
    """

    plan: Plan
    setting: Setting
    records: dict[str, list[Record]] = field(default_factory=dict)
    absent: dict[str, list[str]] = field(default_factory=dict)
    deviations: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    interrupted: bool = False


def run(
    plan: Plan,
    keep: Callable[[Record], None] = lambda record: None,
    show: Callable[[Progress], None] = lambda progress: None,
    mine: Sequence[Provider] | None = None,
) -> Report:
    """Measure everything in the plan.

    Args:
        plan: what.
        keep: called with each record as soon as it is there.
        show: called before each shape.
        mine: our providers; by default those that the plan's kernels name.
    """
    mine = [ours(name) for name in plan.kernels] if mine is None else mine
    peers = [*KNOWN, *map(by_path, plan.peers)]
    kept = allocator.keep_freed_pages() if plan.device == "cpu" else "that of torch for CUDA"
    report = Report(plan, measurements.setting(plan.device, kept))
    suites = [SUITES[name] for name in plan.suites]
    total = sum(len(suite.chosen(plan.full)) for suite in suites)
    done = 0
    try:
        for suite in suites:
            passed = _passed(suite, mine, report)
            for shape in suite.chosen(plan.full):
                show(Progress(done, total, f"{suite.name} {shape.name}"))
                _measure(suite, shape, passed, peers, report, keep)
                done += 1
    except KeyboardInterrupt:
        report.interrupted = True
    return report


def _passed(suite: Suite, mine: Sequence[Provider], report: Report) -> list[Provider]:
    """The providers of ours that may be timed; the report says why the others may not."""
    like = SUITES["nchw"].shapes[0] if suite.kind == "model" else suite.shapes[0]
    passed = []
    for provider in mine:
        try:
            kernel_for(provider, like)
            wrong = refusal(provider, like)
        except ArgumentError as error:
            wrong = f"{provider.name}: {error}"
        if wrong:
            report.refused.append(f"{suite.name}: {wrong}")
        else:
            passed.append(provider)
    return passed


def _measure(
    suite: Suite,
    shape: Shape,
    passed: list[Provider],
    peers: list[Peer],
    report: Report,
    keep: Callable[[Record], None],
) -> None:
    """Add the records of a shape to the report; a shape that fails does not end the others."""
    try:
        for record in _measured(suite, shape, passed, peers, report):
            report.records.setdefault(suite.name, []).append(record)
            keep(record)
    except RuntimeError as error:  # such as no memory for the largest
        reason = str(error).partition("\n")[0]
        report.refused.append(f"{suite.name} {shape.name}: {reason}")


def _measured(
    suite: Suite, shape: Shape, passed: list[Provider], peers: list[Peer], report: Report
) -> Iterator[Record]:
    setting, plan = report.setting, report.plan
    if not passed:
        return
    if suite.kind == "model":
        yield from measurements.models(shape, passed, setting, plan.turns)
    elif suite.kind == "memory":
        yield from measurements.memory(shape, [baseline(), *passed], setting)
    else:
        base, others = baseline(), passed
        if suite.kind == "peers":
            base, others = passed[0], _present(suite, shape, peers, report)
        if others:
            yield from measurements.timed(
                suite, shape, [base, *others], setting, plan.seconds, plan.turns
            )


def _present(suite: Suite, shape: Shape, peers: list[Peer], report: Report) -> list[Provider]:
    """The peers that take such an input; the report says why the others do not, once."""
    present = []
    for peer in peers:
        try:
            provider, deviation = admitted(peer, shape)
        except UnavailableError as error:
            reason = f"{peer.title()}: {error}"
            absent = report.absent.setdefault(suite.name, [])
            if reason not in absent:
                absent.append(reason)
            continue
        report.deviations.setdefault(suite.name, {})[provider.name] = deviation
        present.append(provider)
    return present
