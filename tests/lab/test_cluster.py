import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from renorm.errors import ArgumentError, MissingExtraError
from renorm.lab import cluster, pool
from renorm.lab.pool import Site
from renorm.lab.tasks.registry import file_of, find
from renorm.report.records import Record, Specification
from report.constructed import PLAIN, finished

SHORT = replace(PLAIN, steps=10, normalizer="group_norm")
TASKS = '''
import os
import time
from pathlib import Path
import torch
from torch import nn
from renorm.lab.examples import TensorExamples
from renorm.lab.tasks import Supervised

class Points(Supervised):
    def data(self):
        inputs = torch.arange(256.0).view(64, 4) / 256
        examples = TensorExamples(inputs, torch.arange(64) % 2)
        return examples, examples

    def model(self):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

class Watched(Points):
    """Says in which process it trains, and does not end in the first that has seed 1."""
    def train(self, plan):
        mark = Path("PLACE", f"seed{plan.specification.seed}")
        first = not mark.exists()
        with mark.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        while first and plan.specification.seed == 1:
            time.sleep(0.05)
        return super().train(plan)

class Deadly(Points):
    """Kills the process that trains it."""
    def train(self, plan):
        with Path("PLACE", "deaths").open("a") as file:
            file.write(f"{os.getpid()}\\n")
        os.kill(os.getpid(), 9)
'''


@pytest.fixture
def task_of(tmp_path: Path) -> Callable[..., Specification]:
    path = tmp_path / "tasks.py"
    path.write_text(TASKS.replace("PLACE", str(tmp_path)))

    def specification(name: str, **changes: Any) -> Specification:
        reference = find(f"{path}:{name}")
        named = replace(SHORT, task=reference.name, model="", source=reference.source)
        return replace(named, **changes)

    return specification


class WorkerCrashedError(Exception):
    """As ray names it."""


@dataclass
class StandIn:
    """What is used of ray's interface; a run is done when it is asked for, the last one first.

    Args:
        deaths: how often the process dies that carries out a run, by its number.
        refusal: raised by ``init``.
    """

    deaths: dict[int, int] = field(default_factory=dict)
    refusal: Exception | None = None
    options: dict[str, Any] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    errands: list[Callable[[], Record]] = field(default_factory=list)
    joined: bool = False

    def init(self, address: str, **options: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.joined = True
        self.options = {"address": address, "usage": os.environ.get(cluster.USAGE), **options}

    def shutdown(self) -> None:
        self.joined = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 6.0, "memory": 1e9}

    def remote(self, *, num_cpus: int, max_retries: int) -> Callable[..., Any]:
        assert num_cpus == 1

        def submit(function: Callable[..., Record], *arguments: Any) -> int:
            number = len(self.errands)

            def done() -> Record:
                if self.deaths.get(number, 0) > max_retries:
                    raise WorkerCrashedError("The worker died unexpectedly")
                return function(*arguments)

            self.errands.append(done)
            return number

        return lambda function: SimpleNamespace(remote=partial(submit, function))

    def wait(self, references: list[int], *, num_returns: int) -> tuple[list[int], list[int]]:
        assert num_returns == 1
        return references[-1:], references[:-1]

    def get(self, reference: int) -> Record:
        return self.errands[reference]()

    def cancel(self, reference: int, *, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    ray = StandIn()
    monkeypatch.setitem(sys.modules, "ray", ray)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(pool, "run", lambda specification, data: finished(specification, 0.5))
    monkeypatch.delenv(cluster.USAGE, raising=False)
    return ray


def seeds(count: int, specification: Specification = SHORT) -> list[Specification]:
    return [replace(specification, seed=seed) for seed in range(count)]


def test_a_run_that_dies_too_often_fails_alone(stand_in: StandIn) -> None:
    stand_in.deaths = {0: cluster.RETRIES, 2: cluster.RETRIES + 1}
    runs = seeds(4)
    with cluster.joined("auto") as joined:
        assert stand_in.joined
        records = {one.specification: one for one in joined.run_all(runs, Site())}
    assert not stand_in.joined
    assert [records[one].error is None for one in runs] == [True, True, False, True]
    assert str(records[runs[2]].error).startswith("Traceback")
    assert "WorkerCrashedError: The worker died unexpectedly" in str(records[runs[2]].error)
    assert stand_in.cancelled == []


@pytest.mark.parametrize("ending", ["close", "Ctrl-C"])
def test_ending_early_cancels_what_is_under_way(
    ending: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.joined("auto") as joined:
        outcomes = joined.run_all(seeds(4), Site())
        assert next(outcomes).specification.seed == 3
        if ending == "close":
            outcomes.close()
        else:
            monkeypatch.setattr(stand_in, "wait", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                next(outcomes)
        assert stand_in.cancelled == [0, 1, 2]


def test_a_cluster_of_this_machine_is_quiet_and_as_large_as_asked(stand_in: StandIn) -> None:
    with cluster.joined("local", 3) as joined:
        assert joined.slots == 6
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    own = {"num_cpus": 3, "include_dashboard": False}
    assert stand_in.options == {"address": "local", "usage": "0", **quiet, **own}
    with cluster.joined("192.0.2.1:6379", 3):
        assert stand_in.options == {"address": "192.0.2.1:6379", "usage": "0", **quiet}
    assert cluster.USAGE not in os.environ


def test_a_choice_about_usage_statistics_is_left_alone(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cluster.USAGE, "1")
    with cluster.joined("local"):
        assert stand_in.options["usage"] == "1"
    assert os.environ[cluster.USAGE] == "1"


def test_no_cluster_and_no_library_are_explained(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.refusal = ConnectionError("Could not find any running Ray instance.")
    with (
        pytest.raises(ArgumentError, match=r"'auto' cannot be joined: Could .* ray start --head"),
        cluster.joined("auto"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingExtraError, match=r'pip install "renorm\[ray\]"'),
        cluster.joined("auto"),
    ):
        pass


def test_the_file_of_a_task_travels(task_of: Callable[..., Specification], tmp_path: Path) -> None:
    asked = task_of("Points")
    file = file_of(asked.task)
    assert file is not None
    expected = pool.attempt(asked)
    (tmp_path / "tasks.py").unlink()  # as on another machine
    assert expected.error is None
    assert cluster.carry_out(asked, None, file) == expected
    other = cluster.carry_out(asked, None, (file[0], file[1] + b"\n# changed"))
    assert other.specification == asked
    assert "is not the one that the run was asked for with" in str(other.error)
    assert file_of("digits") is file_of("package.module:Task") is None


@pytest.fixture(scope="module")
def local() -> Iterator[cluster.Cluster]:
    pytest.importorskip("ray", reason="ray is not installed: pip install ray")
    with cluster.joined("local", 2) as joined:
        yield joined


def killed_once(mark: Path) -> threading.Thread:
    """Kill the process that a file comes to name."""

    def kill() -> None:
        while not (mark.exists() and mark.read_text()):
            time.sleep(0.05)
        os.kill(int(mark.read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_loses_and_doubles_nothing(
    local: cluster.Cluster, task_of: Callable[..., Specification], tmp_path: Path
) -> None:
    runs = [*seeds(3, task_of("Watched")), SHORT, replace(SHORT, task="no such")]
    thread = killed_once(tmp_path / "seed1")
    records = list(local.run_all(runs, Site()))
    thread.join()
    processes = (tmp_path / "seed1").read_text().split()
    assert len(set(processes)) == 2
    assert len(records) == len(runs)
    assert "KeyError: 'no such'" in str(records.pop(_place(records, runs.pop())).error)
    by_pool = {one.specification: one for one in pool.run_all(runs, Site(workers=2))}
    assert {one.specification: one for one in records} == by_pool
    assert all(one.error is None for one in records)


def _place(records: list[Record], specification: Specification) -> int:
    return [one.specification for one in records].index(specification)


def test_a_run_that_kills_every_worker_is_a_failed_record(
    local: cluster.Cluster, task_of: Callable[..., Specification], tmp_path: Path
) -> None:
    runs = [task_of("Deadly"), task_of("Points")]
    records = {one.specification: one for one in local.run_all(runs, Site())}
    assert "WorkerCrashedError" in str(records[runs[0]].error)
    assert records[runs[1]].error is None
    assert len((tmp_path / "deaths").read_text().split()) == 1 + cluster.RETRIES


def test_closing_ends_the_run_under_way(
    local: cluster.Cluster, task_of: Callable[..., Specification], tmp_path: Path
) -> None:
    mark = tmp_path / "seed1"
    outcomes = local.run_all(seeds(2, task_of("Watched")), Site())
    assert next(outcomes).specification.seed == 0
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.05)
    outcomes.close()
    process = Path("/proc", mark.read_text().strip())
    while process.exists() and "Z" not in (process / "stat").read_text().split()[2]:
        time.sleep(0.05)  # the time limit of the test run ends a worker that never does
