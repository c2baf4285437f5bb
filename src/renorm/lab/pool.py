"""Runs in this process or in worker processes, as they end."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from renorm.environment import describe
from renorm.errors import ArgumentError
from renorm.lab.ranks import Ranks
from renorm.lab.training import run
from renorm.report.records import Record, Specification

GIB = 2**30
MOST = 2**32  # GiB: more does not fit in a number of bytes


@dataclass(frozen=True)
class Site:
    """Where and with what runs are done; no part of what they are.

    Args:
        data: folder of the data sets; None for the default.
        workers: processes, of one thread each; with 1 the runs are done in this one.
        memory: GiB of data that each worker process may hold, above 0; None for no bound. A run
            that needs more has failed, and so has every run where the libraries alone take more.
        device: where nets are trained, such as ``cuda`` or ``cuda:1``; None for the CPU.

    Raises:
        ArgumentError: a number outside its range, or a device that is not there.
    """

    data: Path | None = None
    workers: int = 1
    memory: float | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.device is not None:
            check_device(self.device)
        if self.workers < 1:
            raise ArgumentError(
                f"workers is how many processes train, at least 1, got {self.workers}."
            )
        if self.memory is not None and not 0 < self.memory <= MOST:
            raise ArgumentError(
                f"memory is the GiB that each process may hold, above 0 and at most {MOST:,}, got "
                f"{self.memory}."
            )


def run_all(specifications: Sequence[Specification], site: Site) -> Generator[Record, None, None]:
    """Do the runs and yield what becomes of each, in the order they end.

    An error, or the death of its process, ends its run alone: the record has the traceback.
    Closing the iterator, or an exception such as KeyboardInterrupt while it waits, ends the
    workers at once; they end as well when this process is killed.
    """
    workers = min(site.workers, len(specifications))
    if workers <= 1 and site.memory is None:
        return _serially(specifications, site)
    return _in_parallel(specifications, workers, site)


def check_device(name: str) -> None:
    """Refuse a device that torch does not know, or this machine does not have.

    Raises:
        ArgumentError: with the devices there are.
    """
    there = ["cpu", *(f"cuda:{place}" for place in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (
        device.type != "cpu" and f"{device.type}:{device.index or 0}" not in there
    ):
        raise ArgumentError(
            f"The device is one of {', '.join(there)} on this machine, got {name!r}."
        )


def attempt(
    specification: Specification, data: Path | None = None, device: str | None = None
) -> Record:
    """One run; an exception but Ctrl-C's becomes a record with its traceback."""
    try:
        if device is not None:
            return run(specification, data, Ranks(device=torch.device(device)))
        return run(specification, data)
    except KeyboardInterrupt:
        raise
    except BaseException:  # sys.exit() in a user's code ends its run, not the grid
        return Record(specification, error=traceback.format_exc(), environment=describe())


def _serially(specifications: Sequence[Specification], site: Site) -> Generator[Record, None, None]:
    for specification in specifications:
        yield attempt(specification, site.data, site.device)


def _in_parallel(
    specifications: Sequence[Specification], workers: int, site: Site
) -> Generator[Record, None, None]:
    others = set(multiprocessing.active_children())
    idle = [_worker(site.memory) for _ in range(workers)]
    busy: dict[Future[Record], tuple[ProcessPoolExecutor, Specification]] = {}
    waiting = list(reversed(specifications))
    try:
        while waiting or busy:
            with _interrupts_ignored():  # inherited: Ctrl-C is for the parent, also at their start
                while waiting and idle:
                    worker, specification = idle.pop(), waiting.pop()
                    future = worker.submit(attempt, specification, site.data, site.device)
                    busy[future] = worker, specification
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                worker, specification = busy.pop(future)
                record, alive = _outcome(future, specification)
                if not alive:
                    worker.shutdown()
                idle.append(worker if alive else _worker(site.memory))
                yield record
    finally:
        if busy:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            worker.shutdown(wait=True, cancel_futures=True)


def _worker(memory: float | None) -> ProcessPoolExecutor:
    """A pool of one process, so that a process that dies is known to have died of its run."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=prepare_worker, initargs=(memory,))


def prepare_worker(memory: float | None) -> None:
    """Leave Ctrl-C to the parent process, end with it, and hold no more memory than allowed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if memory is not None:
        bound_memory(memory)


def bound_memory(gib: float) -> None:
    """Let this process hold no more data than that; a stricter bound that it has stays."""
    import resource

    size, (_, hard) = int(gib * GIB), resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        size = min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def memory_share(workers: int) -> float | None:
    """The machine's memory in GiB divided by ``workers``; None where it cannot be bounded.

    Where there is CUDA, its driver maps far more than it uses, so there is no bound either.
    """
    with contextlib.suppress(ImportError, AttributeError, ValueError):
        import resource

        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        bounded = hasattr(resource, "RLIMIT_DATA") and not torch.cuda.is_available()
        return pages / GIB / workers if bounded else None
    return None


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _outcome(future: "Future[Record]", specification: Specification) -> tuple[Record, bool]:
    """What became of a run, and whether its process can do another."""
    try:
        return future.result(), True
    except Exception as error:  # the process itself died, or its answer could not be sent
        text = "".join(traceback.format_exception(error))
        failed = Record(specification, error=text, environment=describe())
        return failed, not isinstance(error, BrokenProcessPool)
