"""Providers take turns, so that a change of the machine's speed meets all of them alike."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Marks = list[Any]
Step = Callable[["Clock"], Marks]
WARMUP, FEWEST, MOST = 3, 8, 300


class Clock:
    """Marks in time on the CPU, in seconds."""

    def mark(self) -> Any:
        """Now."""
        return time.perf_counter()

    def settle(self) -> None:
        """Wait until everything that was started has ended."""

    def between(self, start: Any, end: Any) -> float:
        """Milliseconds from mark to mark."""
        return 1e3 * (end - start)


class CudaClock(Clock):
    """Marks in the stream of a GPU: events, read after one synchronization at the end.

    The host runs ahead as in a training loop, and the L2 cache is not flushed between calls.
    """

    def mark(self) -> Any:
        """An event in the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()

    def between(self, start: Any, end: Any) -> float:
        """Milliseconds from event to event."""
        return start.elapsed_time(end)


def clock(device: str) -> Clock:
    """The clock for a device."""
    return CudaClock() if device == "cuda" else Clock()


class Times(NamedTuple):
    """Milliseconds of one provider in one direction, over all turns."""

    median: float
    minimum: float


def interleaved(
    steps: Mapping[str, Step], clock: Clock, seconds: float, turns: int | None = None
) -> tuple[dict[str, list[list[float]]], int]:
    """Milliseconds between the marks of each step in each turn, and how many turns there were.

    Args:
        steps: by provider; each does its work and returns its marks.
        clock: for the device.
        seconds: about how long, within ``FEWEST`` and ``MOST`` turns.
        turns: exactly how many instead.
    """
    for _ in range(WARMUP):
        for step in steps.values():
            step(clock)
    if turns is None:
        turns = _affordable(steps, clock, seconds)
    marks: dict[str, list[Marks]] = {name: [] for name in steps}
    order = list(steps)
    for turn in range(turns):
        first = turn % len(order)  # so that nobody always follows the same other
        for name in order[first:] + order[:first]:
            marks[name].append(steps[name](clock))
    clock.settle()
    return {
        name: [[clock.between(a, b) for a, b in itertools.pairwise(m)] for m in own]
        for name, own in marks.items()
    }, turns


def _affordable(steps: Mapping[str, Step], clock: Clock, seconds: float) -> int:
    clock.settle()
    start = time.perf_counter()
    for step in steps.values():
        step(clock)
    clock.settle()
    return max(FEWEST, min(MOST, int(seconds / (time.perf_counter() - start))))


def summarized(turns: list[list[float]]) -> dict[str, Times]:
    """Forward, backward and both, from the times of (forward, backward) or of (forward,)."""
    directions = {"forward": [turn[0] for turn in turns]}
    if len(turns[0]) == 2:
        directions["backward"] = [turn[1] for turn in turns]
        directions["both"] = [sum(turn) for turn in turns]
    return {
        name: Times(statistics.median(values), min(values)) for name, values in directions.items()
    }


def training(layer: nn.Module, x: Tensor, dy: Tensor) -> Step:
    """A forward and a backward with gradients for x and the parameters, all fresh."""
    x = x.detach().requires_grad_()
    leaves = [x, *layer.parameters()]

    def step(clock: Clock) -> Marks:
        for leaf in leaves:
            leaf.grad = None
        start = clock.mark()
        y = layer(x)
        middle = clock.mark()
        y.backward(dy)
        return [start, middle, clock.mark()]

    return step


def inference(layer: nn.Module, x: Tensor) -> Step:
    """A forward without gradients."""
    layer.eval()

    def step(clock: Clock) -> Marks:
        with torch.no_grad():
            start = clock.mark()
            layer(x)
            return [start, clock.mark()]

    return step


def copying(x: Tensor) -> Step:
    """``Tensor.copy_`` between two tensors like x: the bandwidth that there is."""
    source, destination = x.clone(), torch.empty_like(x)

    def step(clock: Clock) -> Marks:
        start = clock.mark()
        destination.copy_(source)
        return [start, clock.mark()]

    return step
