"""What sharing statistics costs a step on 8 to 4096 workers, by a formula; and whether it holds.

The formula is the alpha-beta model of Thakur, Rabenseifner and Gropp (Optimization of Collective
Communication Operations in MPICH, Int. J. High Performance Computing Applications 19(1), 2005): a
message takes ``alpha + n beta``, alpha seconds for its way and beta a byte. With P workers a sum
that all get takes the shorter of

    ceil(log2 P) (alpha + n beta)                         recursive doubling: short messages
    2 ceil(log2 P) alpha + 2 (P - 1) / P n beta           Rabenseifner's: long ones

and a gather that all get, as of nn.SyncBatchNorm, ``ceil(log2 P) alpha + (P - 1) n beta``. A
ring takes ``2 (P - 1) alpha`` in place of the second's, and is never faster here. Left out: the
sum's arithmetic, the start of a collective (on a GPU a kernel launch each, which adds to alpha),
stragglers, and messages in each other's way. So these are lower bounds for a network of that alpha
and beta, and alpha and beta are assumptions. What a step waits for is then

    sync="batch"       sum over layers of  2 T(8 (2C + 1))      forward and backward
    sync="running"     max(0, T(8 (2 sum of C + L)) - time of the backward)

    python benchmarks/sync_model.py
    python benchmarks/sync_model.py --alpha-us 20 --gb-per-s 12.5 --backward-ms 100
    python benchmarks/sync_model.py --measured benchmarks/results/sync-2-cores.jsonl
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import sync_records
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sync_records import Row
from sync_worker import BATCH, NO_BROADCAST

from renorm.errors import RecordError

WORKERS = (8, 32, 128, 512, 1024, 4096)
GRADIENTS = 25_557_032 * 4  # of ResNet-50, float32


class Network(NamedTuple):
    """What a message takes: ``alpha + n * beta`` seconds."""

    alpha: float
    beta: float

    def all_reduce(self, n: float, workers: int) -> float:
        """Seconds of a sum of n bytes that all workers get."""
        hops = math.ceil(math.log2(workers))
        doubling = hops * (self.alpha + n * self.beta)
        halving = 2 * hops * self.alpha + 2 * (workers - 1) / workers * n * self.beta
        return min(doubling, halving)

    def all_gather(self, n: float, workers: int) -> float:
        """Seconds until all workers have the n bytes of each."""
        return math.ceil(math.log2(workers)) * self.alpha + (workers - 1) * n * self.beta


def resnet50() -> list[int]:
    """The channels of each norm layer of He et al. 2016 (arXiv 1512.03385), table 1."""
    sizes = [64]
    for blocks, inside in ((3, 64), (4, 128), (6, 256), (3, 512)):
        sizes += blocks * [inside, inside, 4 * inside] + [4 * inside]
    return sizes


def batch(network: Network, channels: Sequence[int], workers: int) -> float:
    """Seconds that a step with ``sync="batch"`` waits: one sum forward, one backward a layer."""
    return sum(2 * network.all_reduce(8 * (2 * c + 1), workers) for c in channels)


def running(network: Network, channels: Sequence[int], workers: int) -> float:
    """Seconds that the exchange of ``sync="running"`` is under way, beside the backward."""
    return network.all_reduce(8 * (2 * sum(channels) + len(channels)), workers)


def sync_batch_norm(network: Network, channels: Sequence[int], workers: int) -> float:
    """Seconds that a step with nn.SyncBatchNorm waits: it gathers forward, and sums backward."""
    return sum(
        network.all_gather(4 * (2 * c + 1), workers) + network.all_reduce(4 * 2 * c, workers)
        for c in channels
    )


def waits(row: Row) -> int:
    """For how many latencies a step waits, if what is under way beside the backward is free.

    One for the broadcast of the buffers, of which there are two at once; one for the gradients
    that are there last; and each sum of ``sync="batch"``.
    """
    blocking = row.collectives["statistics"] if row.provider == BATCH else 0
    return int(row.provider != NO_BROADCAST) + 1 + blocking


def predicted_table(network: Network, backward: float) -> Table:
    """ResNet-50 on so many workers, in ms a step.

    Waited for: by the exchange of ``sync="running"``, where it outlasts the backward. Gradients:
    all in one sum, for scale; a part of it is behind the backward.
    """
    title = (
        f"alpha {1e6 * network.alpha:g} us, {1e-9 / network.beta:g} GB/s, backward "
        f"{1e3 * backward:g} ms; ms a step of ResNet-50"
    )
    names = ("workers", "batch", "running", "waited for", "SyncBatchNorm", "gradients")
    grid = _grid(title, names)
    sizes = resnet50()
    for workers in WORKERS:
        exchange = running(network, sizes, workers)
        seconds = (
            batch(network, sizes, workers),
            exchange,
            max(0.0, exchange - backward),
            sync_batch_norm(network, sizes, workers),
            network.all_reduce(GRADIENTS, workers),
        )
        grid.add_row(str(workers), *(f"{1e3 * t:.2f}" for t in seconds))
    return grid


class Point(NamedTuple):
    """Latencies that a step waits for, by the formula and by what two latencies took."""

    processes: int
    provider: str
    predicted: int
    measured: float
    of_minima: float
    steady: bool


def points(rows: Sequence[Row]) -> list[Point]:
    """The slope of a step's time, from the least latency above 0 to the greatest.

    At 0 a collective takes what loopback takes, which a latency hides: no slope begins there.

    Raises:
        RecordError: there are not two latencies above 0.
    """
    found = []
    for processes, provider in dict.fromkeys((r.processes, r.provider) for r in rows):
        own = [r for r in rows if (r.processes, r.provider) == (processes, provider)]
        own = sorted((r for r in own if r.latency_ms > 0), key=lambda r: r.latency_ms)
        if len(own) < 2:
            raise RecordError(
                f"{provider} with {processes} processes was measured at {len(own)} latencies above "
                "0, and a slope needs 2. Measure with --latency 0 1 10."
            )
        low, high = own[0], own[-1]
        apart = high.latency_ms - low.latency_ms
        median, minimum = high.median_ms - low.median_ms, high.min_ms - low.min_ms
        steady = low.steady and high.steady
        found.append(
            Point(processes, provider, waits(low), median / apart, minimum / apart, steady)
        )
    return found


def measured_table(found: Sequence[Point]) -> Table:
    """Latencies a step waits for: the formula beside what was measured."""
    names = ("processes", "provider", "formula", "medians", "minima")
    grid = _grid("latencies that a step waits for", names)
    for p in found:
        mark = "" if p.steady else "*"
        grid.add_row(
            str(p.processes),
            p.provider + mark,
            str(p.predicted),
            f"{p.measured:.1f}",
            f"{p.of_minima:.1f}",
        )
    return grid


def _grid(title: str, headings: Sequence[str]) -> Table:
    grid = Table(
        title=title, box=SIMPLE_HEAD, pad_edge=False, show_edge=False, title_justify="left"
    )
    for heading in headings:
        grid.add_column(heading, justify="right", no_wrap=True)
    return grid


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="What sharing statistics costs a step on many workers, by the alpha-beta model."
    )
    parser.add_argument("--alpha-us", type=_positive, help="of a message, with --gb-per-s")
    parser.add_argument("--gb-per-s", type=_positive, help="1 / beta, in 1e9 bytes a second")
    parser.add_argument("--backward-ms", type=_positive, default=50.0, help="default: 50")
    parser.add_argument("--measured", type=Path, help="records of sync_step.py, set beside it")
    given = parser.parse_args(arguments)
    if (given.alpha_us is None) != (given.gb_per_s is None):
        parser.error("--alpha-us and --gb-per-s describe one network: give both, or neither.")
    # in the range of InfiniBand, and of TCP over 10 Gbit Ethernet
    networks = [(5.0, 25.0), (50.0, 1.25)]
    if given.alpha_us is not None:
        networks = [(given.alpha_us, given.gb_per_s)]
    console = Console(highlight=False, markup=False)
    for alpha, rate in networks:
        network = Network(1e-6 * alpha, 1e-9 / rate)
        console.print(predicted_table(network, 1e-3 * given.backward_ms), end="\n\n")
    if given.measured is not None:
        try:
            console.print(measured_table(points(sync_records.read(given.measured))))
        except RecordError as error:
            sys.stderr.write(f"sync_model: {error}\n")
            return 2
    return 0


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
