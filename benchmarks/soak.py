"""Thousands of training steps with everything that goes wrong, and the statistics checked.

Two gloo processes train a small net of batch renorm layers. At random, from one seed: batches of
any size, of one example and of none among them, uneven among the processes; inputs that overflow,
in one element or all, in one process or both; micro-batches in ``renorm.accumulate``, which an
exception may end; training forwards without gradient; eval forwards, in each process as it likes;
new model objects from a checkpoint on disk, from deepcopy or from pickle.

Ends with exit code 1 at the first statistic that is not finite, that differs among processes that
share it, or whose step count is not what the inputs say; and where memory grows.

    python benchmarks/soak.py                              # all scenarios, several minutes
    python benchmarks/soak.py --scenarios running --steps 1000 --seed 7
"""

import argparse
import copy
import gc
import json
import math
import multiprocessing
import pickle
import random
import resource
import statistics
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn
from torch.nn import functional as F

import renorm
from renorm import limits
from renorm.cli import DONE, INTERRUPTED, SOME_FAILED, USAGE
from renorm.cli.progress import Bar
from renorm.environment import describe
from renorm.errors import RenormError
from renorm.names import known
from renorm.nn import BatchRenorm, BatchRenorm1d, BatchRenorm2d, BatchRenormAct2d

SCHEMA = 1
RANKS = 2
CHANNELS, SIDE, CLASSES = 2, 5, 3
VALUES = (math.inf, -math.inf, math.nan, 1e38, -1e38, 1e25)
OVERFLOWS = {  # how the inputs of a process overflow
    "element": "one of them has the value",
    "noise": "all are multiplied by it",
    "constant": "all have it, so they have no variance of their own",
}
SMALL = 1e15  # activations below have finite moments in float32, whatever their number
SAMPLES = 20  # of memory
GROWTH = 8.0  # MiB that the resident set may gain after the first tenth of the steps
SCENARIOS = {  # name: (sync, mixed precision)
    "alone": (None, False),
    "running": ("running", False),
    "batch": ("batch", False),
    "alone_amp": (None, True),
    "running_amp": ("running", True),
    "batch_amp": ("batch", True),
}


class SoakError(Exception):
    """A check failed; says which, where and with what."""


class InterruptionError(Exception):
    """What ends a step in the middle: stands for any error of the user's code."""


@dataclass(frozen=True)
class Step:
    """What happens in a step, in all processes.

    Args:
        sizes: of each micro-batch, the examples of each rank.
        overflow: (micro-batch, value, name in ``OVERFLOWS``, ranks) or None.
        accumulates: whether the micro-batches are in ``renorm.accumulate``.
        ends_after: so many micro-batches an exception ends the step; None for never.
        learns: whether gradients are taken.
        renewal: where the next step's model comes from; None for the same object.
        checks: whether the statistics are read after it; else an exchange stays under way.
    """

    sizes: tuple[tuple[int, ...], ...]
    overflow: tuple[int, float, str, tuple[int, ...]] | None
    accumulates: bool
    ends_after: int | None
    learns: bool
    renewal: str | None
    checks: bool


def drawn(chance: random.Random, overflows: Sequence[str]) -> Step:
    """A random step, with these kinds of overflow."""
    accumulates = chance.random() < 0.25
    count = chance.randint(1, 4) if accumulates else 1
    usual = (0, 1, 1, *range(2, 10))
    sizes = tuple(tuple(chance.choice(usual) for _ in range(RANKS)) for _ in range(count))
    overflow = None
    if chance.random() < 0.1:
        ranks = chance.choice(((0,), (1,), (0, 1)))
        how = chance.choice(overflows)
        overflow = chance.randrange(count), chance.choice(VALUES), how, ranks
    ends = accumulates and chance.random() < 0.2
    renewals = ("disk", "deepcopy", "pickle")
    return Step(
        sizes,
        overflow,
        accumulates,
        chance.randint(0, count) if ends else None,
        chance.random() < 0.9,
        chance.choice(renewals) if chance.random() < 0.01 else None,
        chance.random() < 0.5,
    )


def build(sync: Any, steps: int) -> nn.Sequential:
    """The net: batch renorm of the input, of images and of rows, with all kinds of momentum."""
    options: Any = {"limits": limits.over(steps), "sync": sync}
    groups = {} if sync == "batch" else {"microbatch": 3}
    net = nn.Sequential(
        BatchRenorm2d(CHANNELS, **options),
        nn.Conv2d(CHANNELS, 4, 3, padding=1, bias=False),
        BatchRenorm2d(4, momentum=0.1, **options),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, bias=False),
        BatchRenormAct2d(4, momentum=None, **groups, **options),
        nn.Flatten(),
        nn.Linear(4 * (SIDE - 2) ** 2, 6),
        BatchRenorm1d(6, momentum=0.1, single="running", **options),
        nn.ReLU(),
        nn.Linear(6, CLASSES),
    )
    return renorm.distributed.sync_running(net) if sync == "running" else net


def layers_of(model: nn.Module) -> list[BatchRenorm]:
    """The layers whose statistics are checked, in order."""
    return [layer for layer in model.modules() if isinstance(layer, BatchRenorm)]


@contextmanager
def watched(model: nn.Module) -> Iterator[list[tuple[float, float]]]:
    """Of each training forward of each layer: how many values a channel, and the largest."""
    seen: list[tuple[float, float]] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        if layer.training:
            peak = float(x.abs().max().nan_to_num(math.inf)) if x.numel() else 0.0
            seen.append((x.numel() // x.shape[1], peak))

    with ExitStack() as stack:
        for layer in layers_of(model):
            stack.callback(layer.register_forward_pre_hook(look).remove)
        yield seen


def expected(seen: Sequence[tuple[float, float]], layers: int, sync: Any) -> tuple[Tensor, Tensor]:
    """The least and the most steps (layers,) that the statistics take for these forwards.

    A forward counts if its moments are finite and there is more than one value. Where inputs are
    finite and huge, that depends on rounding: from 0 to 1 step is right.
    """
    mine = torch.tensor(seen, dtype=torch.float64).view(-1, layers, 2)
    parts = [mine]
    if sync is not None:
        parts = [torch.empty_like(mine) for _ in range(RANKS)]
        dist.all_gather(parts, mine)
    values, peaks = torch.stack(parts).unbind(-1)  # (ranks, forwards, layers)
    if sync == "batch":
        values, peaks = values.sum(0, keepdim=True), peaks.amax(0, keepdim=True)
    known = values > 1
    may = (known & peaks.isfinite()).flatten(0, 1).any(0)
    vague = (known & peaks.isfinite() & (peaks >= SMALL)).flatten(0, 1).any(0)
    return (may & ~vague).long(), may.long()


class Trainer:
    """One process: a model, and what is needed to go on training new objects of it."""

    def __init__(self, rank: int, scenario: str, steps: int, seed: int, folder: Path) -> None:
        self.rank, self.steps, self.folder = rank, steps, folder
        self.sync, self.amp = SCENARIOS[scenario]
        self.chance = random.Random(f"{seed} {rank}")  # of what each process does for itself
        self.inputs = torch.Generator().manual_seed(RANKS * seed + rank)
        self.patterns = torch.randn(CLASSES, CHANNELS, SIDE, SIDE, generator=self.inputs)
        dist.broadcast(self.patterns, 0)
        torch.manual_seed(seed)
        self.equip(build(self.sync, steps))
        self.least = self.most = torch.zeros(len(layers_of(self.model)), dtype=torch.long)
        self.counts: Counter[str] = Counter()
        self.losses: list[float] = []

    def equip(self, model: nn.Module, state: dict[str, Any] | None = None) -> None:
        """Go on with this model, and with an optimizer and a scaler of this state."""
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        # one step in ten overflows: at the usual growth after 2,000 clean ones, the scale would
        # fall to 0 for good
        self.scaler = torch.amp.GradScaler("cpu", growth_interval=5, enabled=self.amp)
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])

    def state(self) -> dict[str, Any]:
        """Everything that training goes on from."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return {name: part.state_dict() for name, part in parts.items()}

    def renew(self, how: str) -> None:
        """Replace all objects by new ones in the same state."""
        self.counts[how] += 1
        state = self.state()
        if how == "deepcopy":
            self.equip(copy.deepcopy(self.model), copy.deepcopy(state))
        elif how == "pickle":
            self.equip(*pickle.loads(pickle.dumps((self.model, state))))
        else:
            torch.save(state, self.folder / f"{self.rank}.pt")
            dist.barrier()
            source = self.rank if self.sync is None else 0  # as one process saves for all
            state = torch.load(self.folder / f"{source}.pt")
            dist.barrier()
            self.equip(build(self.sync, self.steps), state)
            self.model.load_state_dict(state["model"])

    def batch(self, step: Step, micro: int) -> tuple[Tensor, Tensor]:
        """The process's inputs and labels of a micro-batch."""
        size = step.sizes[micro][self.rank]
        labels = torch.randint(CLASSES, (size,), generator=self.inputs)
        noise = torch.randn(size, CHANNELS, SIDE, SIDE, generator=self.inputs)
        x = self.patterns[labels] + 0.5 * noise
        if step.overflow is None or step.overflow[0] != micro or self.rank not in step.overflow[3]:
            return x, labels
        _, value, how, _ = step.overflow
        if how == "element":
            x.view(-1)[: min(1, x.numel())] = value
        else:
            x = x * value if how == "noise" else torch.full_like(x, value)
        return x, labels

    def take(self, step: Step) -> None:
        """One step of training."""
        self.counts["examples"] += sum(sizes[self.rank] for sizes in step.sizes)
        self.counts["overflows"] += step.overflow is not None
        self.optimizer.zero_grad()
        with watched(self.model) as seen, suppress(InterruptionError):
            with renorm.accumulate(self.model) if step.accumulates else ExitStack():
                total = sum(self.forward(step, micro) for micro in range(len(step.sizes)))
                if step.ends_after == len(step.sizes):
                    raise InterruptionError
            if step.learns:
                self.learn()
                self.losses += [total] if step.overflow is None and step.sizes[0][self.rank] else []
        if step.ends_after is not None:
            self.counts["interrupted"] += 1
            return
        least, most = expected(seen, len(self.least), self.sync)
        self.least, self.most = self.least + least, self.most + most

    def forward(self, step: Step, micro: int) -> float:
        """Forward, and backward where it learns, of a micro-batch; its loss."""
        if step.ends_after == micro:
            raise InterruptionError
        x, labels = self.batch(step, micro)
        amp = torch.autocast("cpu", torch.bfloat16, enabled=self.amp)
        with torch.set_grad_enabled(step.learns), amp:
            loss = F.cross_entropy(self.model(x).float(), labels, reduction="sum")
            loss = loss / max(1, len(x)) / len(step.sizes)
        if step.learns:
            self.scaler.scale(loss).backward()
        return float(loss.detach())

    def learn(self) -> None:
        """A step by the average gradient, unless it overflows somewhere."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient /= RANKS
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if self.amp or norm.isfinite():  # the scaler sees for itself
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def look(self) -> None:
        """An eval forward of a clean batch, whose output must be finite."""
        self.counts["evals"] += 1
        x = self.patterns + 0.5 * torch.randn(self.patterns.shape, generator=self.inputs)
        with torch.set_grad_enabled(self.chance.random() < 0.5):
            y = self.model.eval()(x)
        self.model.train()
        if not y.isfinite().all():
            raise SoakError(f"An eval forward of a clean batch gave {y.tolist()}.")

    def check(self) -> None:
        """Hold the statistics to what was seen since the last check."""
        self.counts["checks"] += 1
        renorm.distributed.settle(self.model)
        buffers = dict(self.model.named_buffers())
        for name, t in buffers.items():
            if not t.isfinite().all():
                raise SoakError(f"{name} is not finite: {t.tolist()}.")
        steps = torch.stack([t for name, t in buffers.items() if t.dim() == 0])
        if not ((self.least <= steps) & (steps <= self.most)).all():
            raise SoakError(
                f"The layers have taken {steps.tolist()} steps, but their inputs say at least "
                f"{self.least.tolist()} and at most {self.most.tolist()}."
            )
        self.least = self.most = steps.clone()
        if self.sync is not None:
            mine = torch.cat([t.double().view(-1) for t in buffers.values()])
            parts = [torch.empty_like(mine) for _ in range(RANKS)]
            dist.all_gather(parts, mine)
            if not all(torch.equal(part, mine) for part in parts):
                raise SoakError(f"Statistics differ among processes: {parts}.")


def memory() -> tuple[float, int]:
    """MiB of this process in memory, and how many tensors Python can reach."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    tensors = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    return pages * resource.getpagesize() / 2**20, tensors


@dataclass(frozen=True)
class Soak:
    """Everything that a scenario's course depends on.

    Args:
        scenario: name in ``SCENARIOS``.
        steps: how many.
        seed: of everything random.
        overflows: names in ``OVERFLOWS``.
    """

    scenario: str
    steps: int
    seed: int
    overflows: tuple[str, ...]


def work(rank: int, given: Soak, folder: Path, told: Any) -> None:
    """What each process does: all steps of a scenario."""
    scenario, steps, seed = given.scenario, given.steps, given.seed
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    gc.freeze()  # what was imported is not looked through for each sample of memory
    trainer = Trainer(rank, scenario, steps, seed, folder)
    plan = random.Random(f"{seed} {scenario}")
    samples = []
    for number in range(1, steps + 1):
        step = drawn(plan, given.overflows)
        try:
            take(trainer, step)
            if number * SAMPLES % steps < SAMPLES:
                trainer.check()
                aged = memory()[1]
                trainer.renew("disk")
                samples.append((*memory(), aged))
                if rank == 0:
                    told.put(("step", number))
        except Exception as error:
            raise SoakError(f"{scenario}, rank {rank}, step {number} ({step}): {error}") from error
    told.put(("end", rank, summary(trainer, samples)))
    dist.barrier()
    dist.destroy_process_group()


def take(trainer: Trainer, step: Step) -> None:
    """One step, and what happens between it and the next."""
    if trainer.chance.random() < 0.1:
        trainer.look()
    trainer.take(step)
    if step.checks:
        trainer.check()
    if step.renewal is not None:
        trainer.renew(step.renewal)


def summary(trainer: Trainer, samples: Sequence[tuple[float, int, int]]) -> dict[str, Any]:
    """The figures of a process at the end; the first tenth of the samples are warm-up."""
    trainer.look()
    resident, fresh, aged = zip(*samples[len(samples) // 10 :], strict=True)
    if len(set(fresh)) > 1:
        raise SoakError(f"A new model has other numbers of tensors about it, in turn: {fresh}.")
    grown = statistics.median(resident[-3:]) - statistics.median(resident[:3])
    if grown > GROWTH:
        raise SoakError(f"Memory grew by {grown:.1f} MiB, more than {GROWTH}: {resident}.")
    scale = trainer.scaler.get_scale()
    if not 0 < scale < math.inf:
        raise SoakError(f"The scale of the gradients is {scale} at the end: training has stopped.")
    tenth = math.ceil(len(trainer.losses) / 10)
    buffers = [t.numpy().tobytes() for t in trainer.model.buffers()]
    return {
        **trainer.counts,
        "updates": int(trainer.least[0]),
        "tensors": fresh[-1],
        "tensors_at_most": max(aged),
        "mib": round(resident[-1], 1),
        "mib_grown": round(grown, 2),
        "loss_first": statistics.fmean(trainer.losses[:tenth]),
        "loss_last": statistics.fmean(trainer.losses[-tenth:]),
        "scale": scale,
        "checksum": f"{zlib.crc32(b''.join(buffers)):08x}",
    }


def soak(given: Soak, show: Callable[[int], None]) -> list[dict[str, Any]]:
    """Run a scenario in processes of its own: the figures of each.

    Raises:
        ProcessRaisedException: a check failed in one of them; the others are ended.
    """
    told = multiprocessing.get_context("spawn").SimpleQueue()
    figures: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        started = spawn(work, (given, Path(folder), told), RANKS, join=False)
        assert started is not None
        processes: list[Any] = started.processes
        try:
            ended = False
            while not ended:
                ended = started.join(timeout=0.1)
                while not told.empty():
                    kind, *rest = told.get()
                    if kind == "step":
                        show(*rest)
                    else:
                        figures[rest[0]] = rest[1]
        finally:
            for process in processes:
                process.terminate()
                process.join()
    return [figures[rank] for rank in range(RANKS)]


def table(found: dict[str, list[dict[str, Any]]]) -> Table:
    """A row for each scenario; memory is of the process that gained more, the rest of rank 0."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    grid.add_column("scenario", no_wrap=True)
    for heading in ("updates", "overflows", "ended", "renewed", "loss", "tensors", "MiB"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for scenario, figures in found.items():
        one = figures[0]
        largest = max(figures, key=lambda figure: figure["mib_grown"])
        grid.add_row(
            scenario,
            *(str(one.get(name, 0)) for name in ("updates", "overflows", "interrupted")),
            str(sum(one.get(how, 0) for how in ("disk", "deepcopy", "pickle"))),
            f"{one['loss_first']:.2f} {one['loss_last']:.2f}",
            f"{one['tensors']} {one['tensors_at_most']}",
            f"{largest['mib']:.0f} {largest['mib_grown']:+.1f}",
        )
    return grid


LEGEND = (
    "updates: steps of the first layer's statistics. overflows, ended, renewed: steps with such "
    "inputs, ended by an exception, and after which all objects were new ones. loss: of the first "
    "and the last tenth of clean steps. tensors: alive with a new model, and at most with an aged "
    "one. MiB: resident at the end, and gained since the first tenth."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios and print what they came to; returns the exit code."""
    options = parsed(arguments)
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    found: dict[str, list[dict[str, Any]]] = {}
    environment, code = describe(), DONE
    try:
        scenarios = known("scenario", options.scenarios, SCENARIOS)
        overflows = known("overflow", options.overflows, OVERFLOWS)
        with Bar(Console(stderr=True)) as bar:
            for scenario in scenarios:
                given = Soak(scenario, options.steps, options.seed, overflows)
                show = partial(bar.show, total=options.steps, what=f"steps of {scenario}")
                found[scenario] = soak(given, show)
                if options.json is not None:
                    record = {"schema": SCHEMA, **asdict(given), "ranks": found[scenario]}
                    line = json.dumps({**record, "environment": environment}, allow_nan=False)
                    with options.json.open("a") as file:
                        file.write(line + "\n")
    except KeyboardInterrupt:
        messages.print("Interrupted. The scenarios that have ended follow.")
        code = INTERRUPTED
    except (ProcessRaisedException, ProcessExitedException) as error:
        messages.print(f"FAILED: {error}")
        code = SOME_FAILED
    except (RenormError, OSError) as error:
        messages.print(f"soak: {error}")
        return USAGE
    console = Console()
    console.print(table(found))
    console.print(f"\n{LEGEND}", highlight=False)
    return code


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--scenarios", nargs="+", default=list(SCENARIOS), help=f"of {', '.join(SCENARIOS)}")
    add("--overflows", nargs="+", default=list(OVERFLOWS), help=f"of {', '.join(OVERFLOWS)}")
    add("--steps", type=int, default=20_000, help="of each scenario, at least 20 (20000)")
    add("--seed", type=int, default=0, help="of everything random (0)")
    add("--json", type=Path, help="file to append a record a scenario to")
    options = parser.parse_args(arguments)
    if options.steps < SAMPLES:
        parser.error(f"--steps is at least {SAMPLES}, got {options.steps}. Give more.")
    return options


if __name__ == "__main__":
    sys.exit(main())
