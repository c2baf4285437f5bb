import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from renorm.errors import ArgumentError
from renorm.lab import pool, training
from renorm.lab.pool import Site, attempt, run_all
from report.constructed import PLAIN

SHORT = replace(PLAIN, steps=10, normalizer="batch_renorm", condition="clustered")
PARALLEL = Site(workers=2)
DEADLY = """
import os, signal
from renorm.lab.tasks import Task

class Deadly(Task):
    def check(self, plan): pass
    def train(self, plan):
        os.kill(os.getpid(), signal.SIGKILL)

class Greedy(Task):
    def check(self, plan): pass
    def train(self, plan):
        return bytearray(2**33)
"""


@pytest.fixture
def deadly(tmp_path: Path) -> str:
    path = tmp_path / "deadly.py"
    path.write_text(DEADLY)
    return str(path)


def test_an_error_becomes_a_record_with_its_traceback() -> None:
    record = attempt(replace(SHORT, normalizer="no such"))
    assert record.specification.normalizer == "no such"
    assert record.error is not None
    assert record.error.startswith("Traceback")
    assert "training.py" in record.error
    assert record.error.splitlines()[-1].startswith(
        "renorm.errors.ArgumentError: There is no normalizer 'no such'."
    )
    assert (record.score, record.curve) == (None, ())


def test_worker_processes_give_the_same_records_and_end() -> None:
    runs = [replace(SHORT, seed=seed) for seed in range(2)] + [replace(SHORT, task="no such")]
    before = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGINT)
    outcomes = {one.specification: one for one in run_all(runs, PARALLEL)}
    assert "KeyError: 'no such'" in str(outcomes[runs[2]].error)
    assert outcomes[runs[0]] == training.run(runs[0])
    assert outcomes[runs[1]].error is None
    assert set(multiprocessing.active_children()) == before
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.usefixtures("forked")
def test_a_worker_that_dies_fails_its_own_run_alone(deadly: str) -> None:
    dead = replace(SHORT, task=f"{deadly}:Deadly", model="")
    greedy = replace(SHORT, task=f"{deadly}:Greedy", model="")
    runs = [dead, replace(SHORT, seed=1), greedy, SHORT]
    site = Site(workers=1, memory=4.0)
    outcomes = {one.specification: one for one in run_all(runs, site)}
    assert len(outcomes) == 4
    assert "terminated abruptly" in str(outcomes[dead].error)
    assert "MemoryError" in str(outcomes[greedy].error)
    assert outcomes[SHORT].error is outcomes[runs[1]].error is None


@pytest.mark.usefixtures("forked")
def test_closing_early_ends_the_workers() -> None:
    before = set(multiprocessing.active_children())
    outcomes = run_all([replace(SHORT, seed=seed) for seed in range(50)], PARALLEL)
    next(outcomes)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    outcomes.close()
    assert set(multiprocessing.active_children()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from dataclasses import replace\n"
        "from renorm.lab.pool import Site, run_all\n"
        "from report.constructed import PLAIN\n"
        "import multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    outcomes = run_all([replace(PLAIN, seed=s, steps=10) for s in range(4)]\n"
        "        + [replace(PLAIN, seed=s, steps=10**6) for s in range(4)], Site(workers=2))\n"
        "    next(outcomes)\n"
        "    print(*[p.pid for p in multiprocessing.active_children()], flush=True)\n"
        "    list(outcomes)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        workers = [Path("/proc", pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    for worker in workers:
        while worker.exists() and "Z" not in (worker / "stat").read_text().split()[2]:
            time.sleep(0.05)  # the time limit of the test run ends a worker that never does


def test_one_run_needs_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_in_parallel", lambda *_: pytest.fail("started workers"))
    assert len(list(run_all([SHORT], PARALLEL))) == 1
    assert list(run_all([], PARALLEL)) == []


def test_an_answer_that_is_lost_fails_its_run() -> None:
    future: Future = Future()
    future.set_exception(BrokenProcessPool("a process ended abruptly"))
    record, alive = pool._outcome(future, SHORT)
    assert "BrokenProcessPool: a process ended abruptly" in str(record.error)
    assert not alive


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "at least 1, got 0"),
        ({"memory": 0.0}, "above 0 and at most .*, got 0.0"),
        ({"memory": float("inf")}, "above 0 and at most .*, got inf"),
        ({"memory": 1e300}, r"above 0 and at most .*, got 1e\+300"),
    ],
)
def test_a_site_refuses_what_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Site(**settings)


@pytest.mark.parametrize(("hard", "bound"), [(-1, 2**33), (2**40, 2**33), (2**32, 2**32)])
def test_a_stricter_bound_of_memory_stays(
    hard: int, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    hard = resource.RLIM_INFINITY if hard == -1 else hard
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (hard, hard))
    given = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: given.append(pair))
    pool.bound_memory(8.0)
    assert given == [(bound, bound)]


def test_the_share_of_memory_falls_with_the_workers() -> None:
    one, four = pool.memory_share(1), pool.memory_share(4)
    if one is None or four is None:
        pytest.skip("memory cannot be bounded here")
    assert one == pytest.approx(4 * four)
    assert 0.1 < one < 1e6


def test_other_threads_cannot_set_handlers_and_do_not_try() -> None:
    seen = []

    def enter() -> None:
        with pool._interrupts_ignored():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("workers", [1, 2])
def test_nets_are_trained_where_the_site_says(workers: int) -> None:
    runs = [replace(SHORT, seed=seed) for seed in range(2)]
    there = {one.specification: one for one in run_all(runs, Site(workers=workers, device="cpu:0"))}
    assert there == {one: training.run(one) for one in runs}


def test_the_device_reaches_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(specification, data, ranks):
        asked.append(ranks.device)
        return training.run(specification, data, ranks)

    monkeypatch.setattr(pool, "run", run)
    assert attempt(SHORT, None, "cpu:0").error is None
    assert asked == [torch.device("cpu:0")]


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", "cuda:x", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ArgumentError, match=rf"one of cpu.* on this machine, got '{device}'"):
        Site(device=device)
