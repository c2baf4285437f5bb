import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from renorm.lab import launch
from renorm.lab.pool import Site
from renorm.report.records import Record
from report.constructed import PLAIN
from support.mortals import live

WORLD = 2
SHORT = replace(PLAIN, normalizer="group_norm", steps=10, ranks=WORLD)
TASKS = '''
import torch
import torch.distributed as dist
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

class Uneven(Points):
    """The last rank fails in its third forward, while the others wait for its gradients."""
    calls = 0

    def loss(self, outputs, targets):
        self.calls += 1
        if self.calls == 3 and dist.get_rank() == dist.get_world_size() - 1:
            raise OSError("disk on fire")
        return super().loss(outputs, targets)

class Scoreless(Points):
    """Rank 0 fails in what it alone does."""
    def score(self, outputs, targets):
        raise OSError("no paper")
'''


def member(rank: int, port: int, part: Callable[..., Any], *args: Any) -> Any:
    """``part`` in rank 0, which hosts the store as no torchrun is there; the others follow."""
    os.environ |= {
        "WORLD_SIZE": str(WORLD),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if launch.follows():
        return launch.follow()
    with launch.led() as led:
        return part(led, *args)


def records_of(led: launch.Launch, runs: list) -> list[Record]:
    return list(led.run_all(runs, Site()))


def launched(part: Callable[..., Any], *args: Any) -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ends = live(member, port, part, *args, world=WORLD, grouped=False)
    assert [end.error for end in ends] == [""] * WORLD
    return ends[0].value


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    path = tmp_path / "tasks.py"
    path.write_text(TASKS)
    return str(path)


def test_a_rank_that_fails_fails_the_run_in_all_and_no_other(tasks: str) -> None:
    points = replace(SHORT, task=f"{tasks}:Points", model="")
    uneven, scoreless = (
        replace(points, task=f"{tasks}:{name}") for name in ("Uneven", "Scoreless")
    )
    runs = [points, uneven, scoreless, replace(points, seed=1), replace(points, ranks=3)]
    records = launched(records_of, runs)
    assert [one.specification for one in records] == runs
    assert [one.error is None for one in records] == [True, False, False, True, False]
    for record, rank, error in (
        (records[1], 1, "OSError: disk on fire"),
        (records[2], 0, "OSError: no paper"),
    ):
        assert record.error is not None
        assert record.error.rstrip().endswith(error)
        first, last = record.error.split("\n\n")
        assert first.startswith(f"Rank {1 - rank} of 2:\nTraceback")
        assert "RuntimeError" in first  # it waited for the other, and not for a timeout
        assert last.startswith(f"Rank {rank} of 2:\nTraceback")
    assert records[0].environment["ranks"] == "2, gloo"
    assert "shared by 3 processes, but here are 2" in str(records[4].error)


def interrupted(led: launch.Launch, runs: list) -> str:
    records = led.run_all(runs, Site())
    first = next(records)
    records.close()
    return str(first.error)


def test_who_follows_is_let_go_wherever_rank_0_stops(tasks: str) -> None:
    runs = [replace(SHORT, task=f"{tasks}:Points", model="", seed=seed) for seed in range(3)]
    assert launched(interrupted, runs) == "None"


def test_torchrun_shares_every_run_and_rank_0_keeps_and_prints(tasks: str, tmp_path: Path) -> None:
    torchrun = f"{sys.executable} -m torch.distributed.run --nproc-per-node {WORLD}"
    compare = f"-m renorm compare --task {tasks}:Points --steps 10 --seeds 1"
    chosen = "--normalizers group_norm --conditions microbatch"
    ended = subprocess.run(
        f"{torchrun} {compare} {chosen}".split(),
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("1 of 1: group_norm, microbatch, seed 0") == 1
    assert ended.stderr.count("Records: compare.jsonl") == 1
    legend = "statistics per 4 examples; each of 2 processes takes its share"
    assert " ".join(ended.stdout.split()).count(legend) == 1
    (line,) = (tmp_path / "compare.jsonl").read_text().splitlines()
    assert json.loads(line)["specification"]["ranks"] == WORLD
