"""One process of ``sync_step.py``: the nets, and the steps that are timed."""

import inspect
import itertools
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from sync_latency import Traffic, Wire
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import renorm
from renorm.bench.providers import mid_ramp
from renorm.lab.models.resnet import Block

BASELINE, NO_SYNC = "nn.BatchNorm", "batch renorm"
RUNNING, NO_BROADCAST, BATCH = 'sync="running"', "running, no broadcast", 'sync="batch"'
PROVIDERS = (BASELINE, NO_SYNC, RUNNING, NO_BROADCAST, BATCH)
WIDTHS = (16, 32, 64)
_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
# the name since torch 2.13, or the one before
_WITHOUT_BROADCAST: dict[str, Any] = {
    ("forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"): False
}
_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True)
class Plan:
    """What each process does.

    Args:
        processes: how many there are.
        latencies: of a collective, in ms; each is measured in turn.
        blocks: turns of each provider.
        steps: training steps in a block.
        blocks_a_stage: residual blocks in each of the three stages; 3 make ResNet-20.
        batch, side: examples of a process, and pixels of their sides.
    """

    processes: int
    latencies: tuple[float, ...]
    blocks: int
    steps: int
    blocks_a_stage: int = 3
    batch: int = 8
    side: int = 32


@dataclass
class Outcome:
    """What one process found.

    Args:
        milliseconds: a step of each provider and latency, the mean over each block.
        traffic: of one block of each provider.
        exchange: milliseconds of one blocking sum of a layer's statistics, by latency.
    """

    milliseconds: dict[tuple[str, float], list[float]] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    exchange: dict[float, list[float]] = field(default_factory=dict)


def resnet(blocks: int) -> nn.Sequential:
    """The net of He et al. 2016 (arXiv 1512.03385), section 4.2, shortcuts by convolution.

    With 3 blocks a stage it is ResNet-20, of 21 norm layers with 784 channels.
    """
    inside = WIDTHS[0]
    layers: list[nn.Module] = [
        nn.Conv2d(3, inside, 3, padding=1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
    ]
    for outside in WIDTHS:
        for i in range(blocks):
            stride = 2 if i == 0 and outside != inside else 1
            layers.append(Block(inside, outside, stride))
            inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, 10))


def channels(net: nn.Module) -> list[int]:
    """Those of each norm layer."""
    layers = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [layer.num_features for layer in layers]


def built(provider: str, plan: Plan) -> nn.Module:
    """The net, from the same weights in each process and for each provider."""
    torch.manual_seed(0)
    net = resnet(plan.blocks_a_stage)
    if provider == BASELINE:
        return net
    net = mid_ramp(renorm.convert(net, sync="batch" if provider == BATCH else None))
    return renorm.distributed.sync_running(net) if provider in (RUNNING, NO_BROADCAST) else net


def trainer(provider: str, plan: Plan, rank: int, wire: Wire) -> Callable[[], float]:
    """A function that trains for a block of steps and returns the milliseconds of one."""
    # all but one as torch does by default, which broadcasts the buffers before each forward
    options = _WITHOUT_BROADCAST if provider == NO_BROADCAST else {}
    model = DistributedDataParallel(built(provider, plan), **options)
    model.register_comm_hook(dist.group.WORLD, wire.hook)
    torch.manual_seed(rank)
    images = torch.randn(plan.batch, 3, plan.side, plan.side)
    labels = torch.arange(plan.batch) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def block() -> float:
        dist.barrier()  # goes past the wire, and is not timed
        start = time.perf_counter()
        for _ in range(plan.steps):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        renorm.distributed.settle(model)  # what is under way is this provider's to wait for
        return 1e3 * (time.perf_counter() - start) / plan.steps

    return block


def measured(plan: Plan, rank: int, show: Callable[[int], None]) -> Outcome:
    """The providers take turns, block by block, at each latency."""
    with Wire() as wire:
        trainers = {name: trainer(name, plan, rank, wire) for name in PROVIDERS}
        outcome = Outcome()
        for name, block in trainers.items():
            block()  # first steps: agreements, allocations, and buckets that DDP fills anew
            wire.taken()
            block()
            outcome.traffic[name] = wire.taken()
        turns = [(name, latency) for latency in plan.latencies for name in PROVIDERS]
        for turn in range(plan.blocks):
            first = turn % len(turns)  # so that nobody always follows the same other
            for name, latency in turns[first:] + turns[:first]:
                wire.seconds = latency / 1e3
                took = trainers[name]()
                outcome.milliseconds.setdefault((name, latency), []).append(took)
            for latency in plan.latencies:
                wire.seconds = latency / 1e3
                outcome.exchange.setdefault(latency, []).extend(_exchanges())
            show(turn + 1)
    return outcome


def _exchanges(times: int = 10) -> list[float]:
    """Milliseconds of sums as ``sync="batch"`` waits for, with no arithmetic between."""
    sums = torch.zeros(2 * WIDTHS[-1] + 1, dtype=torch.float64)
    dist.barrier()
    marks = [time.perf_counter()]
    for _ in range(times):
        dist.all_reduce(sums)
        marks.append(time.perf_counter())
    return [1e3 * (b - a) for a, b in itertools.pairwise(marks)]


def work(rank: int, plan: Plan, file: str, pipe: Any) -> None:
    """Run as a process; sends ("turn", number) and at last ("done", Outcome) or ("failed", why)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    torch.set_num_threads(1)
    with suppress(BrokenPipeError):  # the parent is gone
        try:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{file}",
                rank=rank,
                world_size=plan.processes,
                timeout=_TIMEOUT,
            )
            outcome = measured(plan, rank, lambda turn: pipe.send(("turn", turn)))
            pipe.send(("done", outcome))
            dist.destroy_process_group()
        except Exception:
            pipe.send(("failed", traceback.format_exc()))
