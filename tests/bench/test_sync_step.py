"""The benchmark of shared statistics: what it delays, what it counts, and that it runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from support.scripts import command

pytestmark = pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sync_step.py"
NET = ("--net", "1", "--batch", "2", "--side", "8", "--blocks", "1", "--steps", "1")


def test_two_processes_and_what_they_send(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    settings = ["--processes", "2", "--latency", "0", *NET, "--json", str(file)]
    done = command(SCRIPT.name, *settings)
    assert done.code == 0, done.err
    assert "2 processes on" in done.out
    rows = {r["provider"]: r for r in map(json.loads, file.read_text().splitlines())}
    layers, channels = 9, 3 * 16 + 3 * 32 + 3 * 64  # a stem or a shortcut, and two, each stage
    sent = {
        name: (r["collectives"]["statistics"], r["bytes"]["statistics"]) for name, r in rows.items()
    }
    one = 8 * (2 * channels + layers)
    assert sent == {
        "nn.BatchNorm": (0, 0),
        "batch renorm": (0, 0),
        'sync="running"': (1, one),
        "running, no broadcast": (1, one),
        'sync="batch"': (2 * layers, 2 * one),
    }
    for name, r in rows.items():
        assert r["collectives"]["buffers"] == (0 if "no broadcast" in name else 2)
        assert r["bytes"]["gradients"] == 4 * r["settings"]["parameters"]


@pytest.mark.parametrize("wrong", [("--processes", "1"), ("--latency", "-1"), ("--steps", "x")])
def test_a_mistake_is_a_message(wrong: tuple[str, str]) -> None:
    done = command(SCRIPT.name, *wrong)
    assert done.code == 2
    assert wrong[0] in done.err
    assert "Traceback" not in done.err


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Work:
    def wait(self) -> bool:
        return True


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import sync_latency  # type: ignore[import-not-found]

    monkeypatch.setattr(sync_latency, "time", Clock())
    monkeypatch.setattr(dist, "all_reduce", lambda t, op, group, later: Work() if later else None)
    return sync_latency


def test_what_blocks_takes_the_latency_and_what_does_not_takes_what_is_left(latency: Any) -> None:
    t = torch.zeros(3)
    before = dist.all_reduce
    with latency.Wire(2.0) as wire:
        dist.all_reduce(t)
        assert latency.time.now == 2
        work: Any = dist.all_reduce(t, async_op=True)
        assert latency.time.now == 2
        latency.time.sleep(1.5)  # arithmetic
        work.wait()
        assert latency.time.now == 4
        work = dist.all_reduce(t, async_op=True)
        latency.time.sleep(7)
        work.wait()
        assert latency.time.now == 11
        assert wire.taken() == ({"statistics": 3}, {"statistics": 36})
        assert wire.taken() == ({}, {})
    assert dist.all_reduce is before
