"""Accuracy where each process sees other classes: what shared statistics are worth then.

The task is scikit-learn's digits. The classes are split among the processes of a gloo group, so no
batch of any process is like the test set, while DistributedDataParallel averages gradients over all
classes. Variants of one seed start from the same weights and see the same examples in the same
order, with the same learning rate. ``joined_batch_norm`` is one process with the batches of all, so
it is what synchronized batch norm would reach.

By default DistributedDataParallel broadcasts the running statistics of rank 0 before each forward.
``batch_norm`` and ``batch_renorm`` are left so: the model that is tested has the statistics of
rank 0, which saw its own classes only. ``batch_norm_pooled`` shows how much of a loss is due to
that alone: the same training, with the statistics of all ranks pooled at the end.
``batch_renorm_apart`` is batch renorm without that broadcast, as under FSDP2: each rank corrects
towards statistics of its own.

    python benchmarks/skewed_ranks.py --json skewed-ranks.jsonl   # a second call does missing runs
"""

import argparse
import copy
import json
import math
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import run_records
import torch
import torch.distributed as dist
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from renorm import convert, limits
from renorm.cli import DONE, INTERRUPTED, USAGE
from renorm.cli.progress import Bar
from renorm.distributed import settle, sync_running
from renorm.environment import describe
from renorm.errors import ArgumentError, RenormError
from renorm.lab.conditions import Shuffled
from renorm.lab.data import digits
from renorm.lab.models import ConvNet
from renorm.lab.tasks.supervised import MOMENTUM, WEIGHT_DECAY
from renorm.names import known
from renorm.nn.sharing import Sync
from renorm.report.statistics import estimate, paired
from renorm.report.wording import in_points

SCHEMA = 1
BASELINE = "batch_norm"
# of the running statistics, batch norm's and ours: a run of hundreds of steps is too short for
# batch renorm's 0.01, with which they take 300 updates to settle
STATISTICS_MOMENTUM = 0.1


@dataclass(frozen=True)
class Variant:
    """One way to train a net with several processes.

    Args:
        renorm: whether the layers are batch renorm; else nn.BatchNorm2d.
        sync: of batch renorm layers.
        joined: one process has the batches of all.
        apart: each rank keeps its own running statistics.
        pooled: those of all ranks are pooled at the end.
    """

    renorm: bool = False
    sync: Sync = None
    joined: bool = False
    apart: bool = False
    pooled: bool = False


VARIANTS = {
    "joined_batch_norm": Variant(joined=True),
    "batch_norm": Variant(),
    "batch_norm_pooled": Variant(apart=True, pooled=True),
    "batch_renorm": Variant(renorm=True),
    "batch_renorm_apart": Variant(renorm=True, apart=True),
    "sync_running": Variant(renorm=True, sync="running"),
    "sync_batch": Variant(renorm=True, sync="batch"),
}


@dataclass(frozen=True)
class Run:
    """Everything a result depends on, apart from the versions of the code.

    Args:
        variant: name in ``VARIANTS``.
        ranks: processes, or for a joined variant parts of the batch.
        seed: of the initial weights and of the data order.
        steps: gradient steps.
        batch: examples of each rank in a step.
        lr: learning rate at the start; it falls to 0 along a cosine.
    """

    variant: str
    ranks: int
    seed: int
    steps: int
    batch: int
    lr: float

    def __post_init__(self) -> None:
        for name, least in (("ranks", 2), ("seed", 0), ("steps", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise ArgumentError(
                    f"{name} must be at least {least}, got {getattr(self, name)}. Give more."
                )
        if self.ranks > digits().classes:
            raise ArgumentError(
                f"Each rank has classes of its own, and there are {digits().classes}, got "
                f"{self.ranks} ranks. Give fewer."
            )
        least = min(len(held) for held in shards(digits().test_labels, self.ranks))
        if self.batch > least:
            raise ArgumentError(
                f"A batch must fit in the {least} test images that the rank with the fewest "
                f"has, got a batch of {self.batch}. Give a smaller one."
            )
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ArgumentError(f"lr is the learning rate, above 0, got {self.lr}. Give 0.1.")


def shards(labels: Tensor, ranks: int) -> list[Tensor]:
    """The indices of each rank's examples; classes are split in order, the first ranks get more.

    >>> [len(part) for part in shards(torch.arange(10), 4)]
    [3, 3, 2, 2]
    """
    return [
        torch.nonzero(torch.isin(labels, classes)).flatten()
        for classes in labels.unique().tensor_split(ranks)
    ]


def batches(labels: Tensor, run: Run, parts: Sequence[int]) -> Iterator[Tensor]:
    """Endless index batches: of each of these parts as many examples as a rank has."""
    sampler, held = Shuffled(run.batch, run.batch), shards(labels, run.ranks)
    draws = []
    for part in parts:
        generator = Generator().manual_seed(run.ranks * run.seed + part)
        draws.append((held[part], sampler.batches(labels[held[part]], generator)))
    while True:
        yield torch.cat([indices[next(drawn)] for indices, drawn in draws])


def build(run: Run) -> ConvNet:
    """The net of a run, its weights drawn with its seed."""
    variant, schedule = VARIANTS[run.variant], limits.over(run.steps)
    torch.manual_seed(run.seed)

    model = ConvNet(digits().classes)
    if variant.renorm:
        convert(model, momentum=STATISTICS_MOMENTUM, limits=schedule, sync=variant.sync)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = STATISTICS_MOMENTUM
    return model


def train(run: Run, rank: int) -> dict[str, Any]:
    """Train and test one net: the figures of a record, as rank 0 has them."""
    variant, task = VARIANTS[run.variant], digits()
    parts = range(run.ranks) if variant.joined else [rank]
    model = build(run)
    if variant.sync == "running":
        sync_running(model)
    net = model if variant.joined else parallel(model, broadcasts=not variant.apart)
    optimizer = torch.optim.SGD(model.parameters(), run.lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.steps)
    drawn = batches(task.train_labels, run, parts)
    losses = torch.zeros(run.steps)
    for step, indices in enumerate(islice(drawn, run.steps)):
        loss = F.cross_entropy(net(task.train_images[indices]), task.train_labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses[step] = loss.detach()
    settle(model)
    if not variant.joined:
        average(model, variant.pooled)
    late = losses[-math.ceil(run.steps / 10) :].mean()
    return {**accuracies(model, run, parts), "loss": float(late) if late.isfinite() else None}


def parallel(model: nn.Module, broadcasts: bool) -> nn.Module:
    """The model with averaged gradients, and by default with the buffers of rank 0."""
    if broadcasts:
        return DistributedDataParallel(model)
    with warnings.catch_warnings():
        # torch 2.13 gave the argument another name, which older ones do not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False)


def average(model: nn.Module, pooled: bool) -> None:
    """Give all ranks the statistics to test with: those of rank 0, or of all together."""
    for layer in model.modules():
        if not isinstance(layer, nn.BatchNorm2d):
            continue
        mean, var = layer.running_mean, layer.running_var
        assert mean is not None
        assert var is not None
        if pooled:
            raw = torch.stack([mean, var + mean.square()])
            dist.all_reduce(raw)
            raw /= dist.get_world_size()
            mean.copy_(raw[0])
            var.copy_(raw[1] - raw[0].square())
        for t in (mean, var):
            dist.broadcast(t, 0)


def accuracies(model: nn.Module, run: Run, parts: Sequence[int]) -> dict[str, Any]:
    """Fractions of test images classified rightly.

    ``accuracy`` is over all test images in eval mode. The other two are over batches that are
    put together as in training, in train mode and in eval mode: their difference is due to the
    statistics alone.
    """
    task = digits()
    drawn = batches(task.test_labels, run, parts)
    count = min(len(held) for held in shards(task.test_labels, run.ranks)) // run.batch
    state = copy.deepcopy(model.state_dict())
    hits, total = torch.zeros(2), torch.zeros(())
    with torch.no_grad():
        right = model.eval()(task.test_images).argmax(1) == task.test_labels
        for indices in islice(drawn, count):
            for mode, training in enumerate((True, False)):
                scores = model.train(training)(task.test_images[indices])
                hits[mode] += (scores.argmax(1) == task.test_labels[indices]).sum()
                model.load_state_dict(state)  # all batches meet what the training left
            total += len(indices)
    if len(parts) == 1:
        dist.all_reduce(hits)
        dist.all_reduce(total)
    train_mode, eval_mode = (hits / total).tolist()
    accuracy = int(right.sum()) / len(right)
    return {"accuracy": accuracy, "train_mode": train_mode, "eval_mode": eval_mode}


def work(rank: int, runs: Sequence[Run], store: str, records: Any) -> None:
    """What each process does: all runs of its world size, one after the other."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=runs[0].ranks
    )
    for run in runs:
        if rank == 0 or not VARIANTS[run.variant].joined:
            figures = train(run, rank)
            if rank == 0:
                records.put((run, figures))
    dist.barrier()
    dist.destroy_process_group()


def complete(runs: Sequence[Run], keep: Callable[[Run, dict[str, Any]], None]) -> None:
    """Do the runs, world size by world size; ``keep`` gets each result as soon as it is there.

    Raises:
        ProcessRaisedException: a process failed; the others are ended.
    """
    for ranks in dict.fromkeys(run.ranks for run in runs):
        mine = [run for run in runs if run.ranks == ranks]
        records = multiprocessing.get_context("spawn").SimpleQueue()
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store")
            started = spawn(work, (mine, store, records), ranks, join=False)
            assert started is not None
            processes: list[Any] = started.processes
            try:
                ended = False
                while not ended:
                    ended = started.join(timeout=0.1)
                    while not records.empty():
                        keep(*records.get())
            finally:
                for process in processes:
                    process.terminate()
                    process.join()


def read(path: Path) -> dict[Run, dict[str, Any]]:
    """The records of a file by run, the last of each; no file is no records.

    Raises:
        ArgumentError: a line is no record of this script.
    """
    return run_records.read(path, SCHEMA, lambda record: (_run_of(record), record))


def _run_of(record: dict[str, Any]) -> Run:
    return Run(**{field.name: record[field.name] for field in fields(Run)})


def table(runs: Sequence[Run], found: dict[Run, dict[str, Any]], baseline: str) -> Table:
    """A row for each variant and number of ranks: means over seeds, in percent."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    grid.add_column("ranks", no_wrap=True)
    grid.add_column("variant", no_wrap=True)
    for heading in ("accuracy", "train mode", "gap", "gain", "runs"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for ranks in dict.fromkeys(run.ranks for run in runs):
        figures = {
            variant: {
                run.seed: found[run]
                for run in runs
                if (run.ranks, run.variant) == (ranks, variant) and run in found
            }
            for variant in dict.fromkeys(run.variant for run in runs)
        }
        for variant, mine in figures.items():
            grid.add_row(str(ranks), variant, *_cells(mine, figures.get(baseline, {})))
        grid.add_section()
    return grid


def _cells(mine: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]) -> list[str]:
    if not mine:
        return ["-", "-", "-", "-", "0"]
    accuracy, against = (
        {seed: 100 * record["accuracy"] for seed, record in records.items()}
        for records in (mine, baseline)
    )
    train_mode = [100 * record["train_mode"] for record in mine.values()]
    gap = [100 * (record["train_mode"] - record["eval_mode"]) for record in mine.values()]
    gain = None if mine is baseline else paired(accuracy, against)
    shown = [in_points(estimate(values)) for values in (list(accuracy.values()), train_mode, gap)]
    return [*shown, "-" if gain is None else in_points(gain), str(len(mine))]


LEGEND = (
    "accuracy: % of all test images in eval mode. train mode: % of test batches put together as in "
    "training, by batch statistics. gap: that less eval mode on the same images. gain: accuracy "
    "less that of {baseline}, seed by seed. ± is Student's 95 % interval over seeds."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that the file lacks, and show all; returns the exit code."""
    options = parsed(arguments)
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    environment, interrupted = describe(), False
    try:
        variants = known("variant", options.variants, VARIANTS)
        wanted = [
            Run(variant, ranks, seed, options.steps, options.batch, options.lr)
            for ranks in options.ranks
            for seed in range(options.seeds)
            for variant in variants
        ]
        found = {} if options.json is None else read(options.json)
        missing = [run for run in wanted if run not in found]
        with Bar(Console(stderr=True)) as bar:

            def keep(run: Run, figures: dict[str, Any]) -> None:
                found[run] = {"schema": SCHEMA, **asdict(run), **figures}
                if options.json is not None:
                    line = json.dumps({**found[run], "environment": environment}, allow_nan=False)
                    with options.json.open("a") as file:
                        file.write(line + "\n")
                done = sum(run in found for run in wanted)
                what = f"{run.ranks} ranks, {run.variant}, seed {run.seed}"
                bar.show(done, len(wanted), f"{what}: {100 * figures['accuracy']:.1f} %")

            try:
                complete(missing, keep)
            except KeyboardInterrupt:
                interrupted = True
    except (RenormError, OSError) as error:
        messages.print(f"skewed_ranks: {error}")
        return USAGE
    output = Console()
    output.print(table(wanted, found, options.against))
    output.print("\n" + LEGEND.format(baseline=options.against), highlight=False)
    if interrupted:
        messages.print("Interrupted. With --json, the same command does the missing runs.")
    return INTERRUPTED if interrupted else DONE


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked as far as a single one can be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of processes (2 4)")
    add("--variants", nargs="+", default=list(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    add("--against", choices=list(VARIANTS), default=BASELINE, help=f"of the gain ({BASELINE})")
    add("--seeds", type=int, default=5, help="how many: 0, 1, ...; 1 gives no interval (5)")
    add("--steps", type=int, default=600, help="gradient steps a run (600)")
    add("--batch", type=int, default=8, help="examples of each rank in a step (8)")
    add("--lr", type=float, default=0.1, help="learning rate at the start (0.1)")
    add("--json", type=Path, help="file of records: read first, then appended to")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"seeds is how many seeds to run, at least 1, got {options.seeds}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
