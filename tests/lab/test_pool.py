import multiprocessing
import signal
import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest

from renorm.lab import pool, training
from renorm.lab.pool import Failure, attempt, run_all
from renorm.report.records import Record
from report.constructed import PLAIN

SHORT = replace(PLAIN, steps=10, normalizer="batch_renorm", condition="clustered")


def test_an_error_becomes_a_failure_with_its_type_and_text() -> None:
    broken = replace(SHORT, normalizer="no such")
    assert attempt(broken) == Failure(broken, "KeyError: 'no such'")


def test_worker_processes_give_the_same_records_and_end() -> None:
    runs = [replace(SHORT, seed=seed) for seed in range(2)] + [replace(SHORT, task="no such")]
    before = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGINT)
    outcomes = {one.specification: one for one in run_all(runs, workers=2)}
    assert outcomes[runs[2]] == Failure(runs[2], "KeyError: 'no such'")
    assert outcomes[runs[0]] == training.run(runs[0])
    assert isinstance(outcomes[runs[1]], Record)
    assert set(multiprocessing.active_children()) == before
    assert signal.getsignal(signal.SIGINT) is handler


def test_closing_early_ends_the_workers() -> None:
    before = set(multiprocessing.active_children())
    outcomes = run_all([replace(SHORT, seed=seed) for seed in range(50)], workers=2)
    next(outcomes)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    outcomes.close()
    assert set(multiprocessing.active_children()) == before
    assert {worker.exitcode for worker in workers} == {-signal.SIGTERM}


def test_one_run_needs_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_in_parallel", lambda *_: pytest.fail("started workers"))
    assert len(list(run_all([SHORT], workers=2))) == 1
    assert list(run_all([], workers=2)) == []


def test_a_worker_that_dies_is_a_failure_of_its_runs() -> None:
    future: Future = Future()
    future.set_exception(BrokenProcessPool("a process ended abruptly"))
    expected = Failure(SHORT, "BrokenProcessPool: a process ended abruptly")
    assert pool._outcome(future, SHORT) == expected


def test_workers_leave_ctrl_c_to_the_parent() -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        pool.ignore_interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


def test_other_threads_cannot_set_handlers_and_do_not_try() -> None:
    seen = []

    def enter() -> None:
        with pool._interrupts_ignored():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
