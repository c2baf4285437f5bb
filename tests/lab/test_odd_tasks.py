"""Tasks of a user's own that do what nobody expects."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from renorm.errors import ArgumentError
from renorm.lab import pool
from renorm.lab.experiment import Grid
from renorm.lab.tasks import Supervised
from renorm.lab.tasks.registry import load
from renorm.lab.training import plan, task_of
from renorm.report.records import Record, Specification, from_line, to_line

BASE = """
import sys
import torch
from torch import nn
from renorm.lab.examples import TensorExamples
from renorm.lab.tasks import Outcome, Supervised, Task


class Base(Supervised):
    steps, lr, batch_size, group_size = 10, 0.1, 16, 4

    def data(self):
        inputs = torch.randn(96, 5, generator=torch.Generator().manual_seed(0))
        labels = (inputs.sum(1) > 0).long()
        return (
            TensorExamples(inputs[:64], labels[:64], labels[:64]),
            TensorExamples(inputs[64:], labels[64:], labels[64:]),
        )

    def model(self):
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(body: str, **settings: Any) -> tuple[Specification, ...]:
    """The runs of a task Own with that body, of a new file in this folder."""
    file = Path(f"own{len(list(Path().iterdir()))}.py").resolve()  # a process reads a file once
    file.write_text(f"{BASE}class Own(Base):\n{body}\n")
    given: dict[str, Any] = {"normalizers": ("batch_norm",), "conditions": ("iid",), "seeds": 1}
    return Grid.of(f"{file}:Own", **(given | settings)).specifications()


def attempted(body: str, **settings: Any) -> Record:
    return pool.attempt(runs(body, **settings)[0])


@pytest.mark.parametrize(
    ("score", "kept"),
    [
        ("torch.tensor(0.25)", 0.25),
        ("torch.tensor([1])", 1.0),
        ("True", 1.0),
        ("outputs.double().numpy().mean() * 0", 0.0),
    ],
)
def test_a_score_of_any_number_type_is_kept(score: str, kept: float, folder: Path) -> None:
    record = attempted(f"    def score(self, outputs, targets): return {score}")
    assert record.error is None
    assert type(record.score) is float
    assert record.score == kept
    assert from_line(to_line(record)) == record


@pytest.mark.parametrize("score", ["float('nan')", "torch.tensor(float('inf'))"])
def test_a_score_that_is_not_finite_fails_its_run(score: str, folder: Path) -> None:
    record = attempted(f"    def score(self, outputs, targets): return {score}")
    assert "A score is a finite number" in str(record.error)
    assert from_line(to_line(record)) == record


def test_outputs_that_are_finite_in_eval_mode_alone_have_no_train_mode_score(folder: Path) -> None:
    record = attempted(
        "    def model(self):\n"
        "        class Net(nn.Sequential):\n"
        "            def forward(self, x):\n"
        "                y = super().forward(x)\n"
        "                return y / (torch.is_grad_enabled() or not self[1].training)\n"
        "        return Net(*super().model())"
    )
    assert record.score is not None
    assert record.eval_mode_score is not None
    assert (record.train_mode_score, record.gap) == (None, None)


@pytest.mark.parametrize("score", ["float('nan')", "True", "torch.tensor(1.0)"])
def test_an_outcome_that_cannot_be_kept_fails_its_run(score: str, folder: Path) -> None:
    record = attempted(f"    def train(self, plan): return Outcome({score})")
    assert "cannot be kept" in str(record.error)
    assert from_line(to_line(record)) == record


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_exits_fails_its_runs_and_the_grid_goes_on(workers: int, folder: Path) -> None:
    ours = runs(
        "    def model(self):\n"
        "        if torch.initial_seed() == 0: sys.exit(3)\n"
        "        return super().model()",
        seeds=2,
    )
    records = {one.specification: one for one in pool.run_all(ours, pool.Site(workers=workers))}
    assert "SystemExit: 3" in str(records[ours[0]].error)
    assert records[ours[1]].score is not None


def test_a_task_file_that_exits_is_explained(folder: Path) -> None:
    Path("script.py").write_text("import sys\nsys.exit('usage: script.py FILE')\n")
    with pytest.raises(ArgumentError, match=r"raised an error.*(?s:.)*usage: script.py FILE"):
        Grid.of("script.py:Own")


@pytest.mark.parametrize("drop", ["nn.Dropout(0.5)", "Functional()"])
def test_dropout_is_no_part_of_the_gap(drop: str, folder: Path) -> None:
    body = (
        "    def model(self):\n"
        "        class Functional(nn.Module):\n"
        "            def forward(self, x): return nn.functional.dropout(x, 0.5, self.training)\n"
        f"        return nn.Sequential(*super().model(), nn.Linear(2, 64), {drop}, "
        "nn.Linear(64, 2))"
    )
    record = attempted(body, normalizers=("group_norm",))
    assert record.gap == 0


def test_what_a_model_keeps_in_eval_mode_stays_so_in_train_mode(folder: Path) -> None:
    record = attempted(
        "    def model(self):\n"
        "        class Frozen(nn.Sequential):\n"
        "            def train(self, mode=True):\n"
        "                super().train(mode)\n"
        "                self[1].eval()\n"
        "                return self\n"
        "        return Frozen(*super().model())"
    )
    assert record.gap == 0


DRAWN = """
        inputs = torch.randn(96, 5)
        labels = (inputs.sum(1) > 0).long()
        return (
            TensorExamples(inputs[:64], labels[:64], labels[:64]),
            TensorExamples(inputs[64:], labels[64:], labels[64:]),
        )
"""


@pytest.mark.parametrize(
    "body",
    [
        f"    def data(self):{DRAWN}",
        f"    def __init__(self): self.kept = self.drawn()\n"
        f"    def data(self): return self.kept\n    def drawn(self):{DRAWN}",
        f"    def data(self):\n        if not hasattr(self, 'kept'): self.kept = self.drawn()\n"
        f"        return self.kept\n    def drawn(self):{DRAWN}",
    ],
    ids=["anew", "by the constructor", "once"],
)
def test_examples_at_random_are_the_same_in_every_run(body: str, folder: Path) -> None:
    first, second = runs(body, seeds=2)
    task = task_of(first)
    assert isinstance(task, Supervised)
    fresh = [pool.attempt(one) for one in (second, first)]
    assert [pool.attempt(one) for one in (second, first)] == fresh
    assert fresh[0].score is not None
    load.cache_clear()
    torch.rand(1)
    other = task_of(first)
    assert isinstance(other, Supervised)
    assert other is not task
    (before, _), (after, _) = (
        (one.problem(plan(run)).train.batch(torch.arange(64)))
        for one, run in ((task, first), (other, second))
    )
    assert torch.equal(before, after)
    assert [pool.attempt(one) for one in (first, second)] == fresh[::-1]


def test_a_default_dtype_is_not_left_behind(folder: Path) -> None:
    record = attempted(
        "    def model(self):\n"
        "        torch.set_default_dtype(torch.float64)\n"
        "        return super().model().float()"
    )
    assert record.error is None
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("model", ["self.net", "nn.Sequential(self.net)"])
def test_a_model_that_was_trained_before_is_refused(model: str, folder: Path) -> None:
    kept = "    def __init__(self): self.net = Base.model(self)\n    def model(self): return "
    first, second = runs(kept + model, seeds=2)
    assert pool.attempt(first).error is None
    assert "a Linear that an earlier run has trained" in str(pool.attempt(second).error)
    first, second = runs(kept + f"__import__('copy').deepcopy({model})", seeds=2)
    assert (pool.attempt(first).error, pool.attempt(second).error) == (None, None)


def test_a_task_file_may_import_what_lies_beside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    beside = Path("deeper", "beside_of_own.py")
    beside.parent.mkdir()
    beside.write_text(BASE)
    beside.with_name("own.py").write_text("from beside_of_own import Base as Own\n")
    assert Grid.of("deeper/own.py:Own").steps == 10


def test_a_module_may_lie_in_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    Path("module_of_own.py").write_text(BASE)
    assert Grid.of("module_of_own:Base").steps == 10
