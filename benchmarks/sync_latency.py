"""Collectives that take at least a given time, and are counted.

On one machine a collective over loopback takes some 0.1 ms, and nothing shows what waiting for a
network costs. So each is finished no earlier than a given latency after its start: one that blocks
sleeps for what is left of it; one that does not block sleeps when it is waited for, and not at all
if it was sent off long enough before. What overlaps with arithmetic is therefore free, and what
does not costs the latency, which is what a step's time depends on, however many wires are between.

What this is not: a network. There is no bandwidth but that of loopback, no switch that large
messages share, and the same latency for 2 processes and for 4; the arithmetic is that of a CPU,
slower than a GPU's, so ratios of whole steps are smaller than where a step is short. What carries
over is the number of latencies that a step waits for; ``sync_model.py`` puts it into a formula.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor

STATISTICS, GRADIENTS, BUFFERS = "statistics", "gradients", "buffers"
KINDS = (STATISTICS, GRADIENTS, BUFFERS)
_DIST: Any = dist  # of which some names are torch's own


class Traffic(NamedTuple):
    """Collectives, and the bytes that each process gives into them, by kind."""

    collectives: dict[str, int]
    bytes: dict[str, int]


class Wire:
    """The collectives of this process, delayed and counted; a context manager that undoes it.

    Inside, ``torch.distributed.all_reduce`` and the broadcast of DistributedDataParallel's buffers
    are others; its gradients come here by ``hook``, for ``register_comm_hook``.

    Args:
        seconds: from the start of a collective to its end, at least; may be set at any time.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._collectives: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._real: tuple[Callable[..., Any], Callable[..., Any]]
        self._deliveries = _Deliveries()

    def __enter__(self) -> Self:
        self._real = _DIST.all_reduce, _DIST._broadcast_coalesced
        _DIST.all_reduce = self._all_reduce
        _DIST._broadcast_coalesced = self._broadcast
        self._deliveries.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _DIST.all_reduce, _DIST._broadcast_coalesced = self._real
        self._deliveries.end()

    def taken(self) -> Traffic:
        """What was counted since the last call."""
        traffic = Traffic(dict(self._collectives), dict(self._bytes))
        self._collectives.clear()
        self._bytes.clear()
        return traffic

    def hook(
        self,
        group: Any,
        bucket: dist.GradBucket,  # type: ignore[attr-defined]  # torch looks for this very name
    ) -> torch.futures.Future[Tensor]:
        """The mean of a bucket of gradients: torch's default hook, and the latency."""
        gradients = bucket.buffer().div_(dist.get_world_size(group))
        self._count(GRADIENTS, [gradients])
        due = self._due()
        work = self._real[0](gradients, group=group, async_op=True)
        return self._deliveries.promise(work, due, gradients)

    def _all_reduce(
        self, tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False
    ) -> Any:
        self._count(STATISTICS, [tensor])
        due = self._due()
        work = self._real[0](tensor, op, group, async_op)
        if async_op:
            return _Work(work, due)
        _sleep_until(due)
        return work

    def _broadcast(self, group: Any, tensors: Sequence[Tensor], size: int, source: int = 0) -> None:
        # torch sends one message a dtype, all before it waits for any: one latency together
        self._count(BUFFERS, tensors, len({t.dtype for t in tensors}))
        due = self._due()
        self._real[1](group, tensors, size, source)
        _sleep_until(due)

    def _due(self) -> float:
        return time.perf_counter() + self.seconds

    def _count(self, kind: str, tensors: Sequence[Tensor], collectives: int = 1) -> None:
        self._collectives[kind] += collectives
        self._bytes[kind] += sum(t.numel() * t.element_size() for t in tensors)


class _Work:
    """A collective under way; ``wait`` returns when its time has come."""

    def __init__(self, work: Any, due: float) -> None:
        self._work, self._due = work, due

    def wait(self, *args: Any) -> Any:
        result = self._work.wait(*args)
        _sleep_until(self._due)
        return result


class _Deliveries:
    """A thread that keeps promises when they are due, in order, as backward runs on."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def promise(self, work: Any, due: float, result: Tensor) -> torch.futures.Future[Tensor]:
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        self._queue.put((work, due, result, future))
        return future

    def _run(self) -> None:
        for work, due, result, future in iter(self._queue.get, None):
            try:
                work.wait()
                _sleep_until(due)
                future.set_result(result)
            except Exception as error:  # DistributedDataParallel raises it where it waits
                future.set_exception(error)


def _sleep_until(due: float) -> None:
    left = due - time.perf_counter()
    if left > 0:
        time.sleep(left)
