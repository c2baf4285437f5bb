"""Runs in this process or in worker processes, as they end."""

import multiprocessing
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

from renorm.lab.training import run
from renorm.report.records import Record, Specification


@dataclass(frozen=True)
class Failure:
    """A run that ended in an error.

    Args:
        specification: what was run.
        message: type and text of the error.
    """

    specification: Specification
    message: str


Outcome = Record | Failure


def run_all(
    specifications: Sequence[Specification], workers: int
) -> Generator[Outcome, None, None]:
    """Do the runs and yield what becomes of each, in the order they end.

    An error ends its run alone. Closing the iterator, or an exception such as KeyboardInterrupt
    while it waits, ends the workers at once.

    Args:
        specifications: what to run.
        workers: processes; with 1 the runs are done in this one.
    """
    workers = min(workers, len(specifications))
    if workers <= 1:
        return _serially(specifications)
    return _in_parallel(specifications, workers)


def attempt(specification: Specification) -> Outcome:
    """One run; an exception becomes a Failure."""
    try:
        return run(specification)
    except Exception as error:
        return Failure(specification, f"{type(error).__name__}: {error}")


def _serially(specifications: Sequence[Specification]) -> Generator[Outcome, None, None]:
    for specification in specifications:
        yield attempt(specification)


def _in_parallel(
    specifications: Sequence[Specification], workers: int
) -> Generator[Outcome, None, None]:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=ignore_interrupt)
    finished = False
    try:
        with _interrupts_ignored():  # inherited: Ctrl-C is for the parent, also while they start
            futures = {executor.submit(attempt, one): one for one in specifications}
        for future in as_completed(futures):
            yield _outcome(future, futures[future])
        finished = True
    finally:
        if not finished:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)


def ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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


def _outcome(future: "Future[Outcome]", specification: Specification) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # the process itself died, or its answer could not be sent
        return Failure(specification, f"{type(error).__name__}: {error}")
