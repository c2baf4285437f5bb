from dataclasses import replace
from pathlib import Path

import pytest

from renorm.errors import ArgumentError
from renorm.lab import training
from renorm.lab.experiment import Grid, complete
from renorm.lab.store import Store
from renorm.lab.tasks import find, template


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return template.write(Path())


def grid(task: str) -> Grid:
    return Grid.of(task, normalizers=("batch_norm", "batch_renorm"), seeds=1, steps=10)


def with_more(own: Path, code: str) -> str:
    """The name of the task Mine in a file of its own: the template and ``code``."""
    file = Path(f"{abs(hash(code))}.py")
    file.write_text(f"{own.read_text()}\n{code}")
    return f"{file}:Mine"


def test_the_template_is_compared_as_it_is(own: Path) -> None:
    wanted = grid("my_task.py:MyTask")
    assert (wanted.lr, wanted.batch_size) == (0.1, 32)
    assert len(wanted.task.source) == 16
    result = complete(wanted, Store(Path("runs.jsonl")))
    assert len(result.records) == 6
    assert all(record.score is not None for record in result.records.values())


def test_the_template_can_be_learnt(own: Path) -> None:
    (run, *_) = Grid.of("my_task.py:MyTask", steps=300).specifications()
    score = training.run(run).score
    assert score is not None
    assert score > 0.9


def test_nothing_is_written_over(own: Path) -> None:
    with pytest.raises(ArgumentError, match="is there already"):
        template.write(Path())
    with pytest.raises(ArgumentError, match="cannot be written: No such file"):
        template.write(Path("no"))


def test_another_content_is_another_task(own: Path) -> None:
    before = find("my_task.py:MyTask")
    Path("copy.py").write_text(own.read_text().replace("6 *", "7 *"))
    assert find("copy.py:MyTask").source != before.source


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("MyTsk", "", "has no task 'MyTsk'. It has MyTask"),
        ("other", "def other(): return 3", "must return a renorm.lab.tasks.Task, got int"),
        ("other", "def other(): 1 / 0", r"raised an error.*(?s:.)*ZeroDivisionError"),
        ("MyTask", "1 / 0", r"raised an error.*(?s:.)*ZeroDivisionError"),
        (
            "Bad",
            "class Bad(MyTask):\n    def data(self): raise KeyError('mine')",
            r"raised an error.*(?s:.)*KeyError: 'mine'",
        ),
        (
            "Two",
            "class Two(MyTask):\n    def model(self):\n"
            "        class Pair(nn.Module):\n            def forward(self, x): return x, x\n"
            "        return nn.Sequential(nn.BatchNorm1d(2), Pair())",
            "are one tensor .* got a tuple",
        ),
        (
            "Each",
            "class Each(MyTask):\n    def loss(self, outputs, targets):\n"
            "        return nn.functional.cross_entropy(outputs, targets, reduction='none')",
            r"one number as a tensor, .* got Tensor of shape \(32,\)",
        ),
        (
            "Plain",
            "class Plain(MyTask):\n    def loss(self, outputs, targets): return 0.5",
            "one number as a tensor, .* got float",
        ),
        (
            "Bare",
            "class Bare(MyTask):\n    def data(self):\n"
            "        x = torch.zeros(64, 2); return TensorExamples(x, x), TensorExamples(x, x)",
            "no labels.*--conditions iid microbatch",
        ),
        (
            "Plain",
            "class Plain(MyTask):\n    def data(self):\n"
            "        x = torch.utils.data.TensorDataset(torch.zeros(64, 2)); return x, x",
            "got a TensorDataset. Wrap a torch Dataset: .*DatasetExamples",
        ),
        (
            "Parts",
            "class Parts(MyTask):\n    def data(self):\n"
            "        x = DatasetExamples([({'a': 0.0}, 1)] * 64); return x, x",
            "The inputs of a batch are one tensor.*got a dict",
        ),
        (
            "Answers",
            "class Answers(MyTask):\n    def data(self):\n"
            "        x = DatasetExamples([(torch.zeros(2), (1, 2))] * 64); return x, x",
            "The targets of a batch are one tensor.*got a list",
        ),
        (
            "Pair",
            "class Pair(MyTask):\n    def model(self):\n"
            "        class Two(nn.Module):\n"
            "            def forward(self, x): return x, x\n"
            "        return Two()",
            "The outputs of a model are one tensor.*got a tuple",
        ),
    ],
)
def test_a_task_that_cannot_be_used_is_explained(
    name: str, content: str, message: str, own: Path
) -> None:
    file = Path(f"{abs(hash((name, content)))}.py")
    file.write_text(own.read_text() + "\n" + content)
    with pytest.raises(ArgumentError, match=message):
        complete(grid(f"{file}:{name}"), Store(Path("runs.jsonl")))
    assert not Path("runs.jsonl").exists()


def test_a_model_for_ones_own_task_is_refused(own: Path) -> None:
    with pytest.raises(ArgumentError, match="builds its model itself, got the model 'convnet'"):
        find("my_task.py:MyTask", "convnet")


def test_a_run_that_raises_is_marked_and_the_grid_goes_on(own: Path) -> None:
    file = Path("fragile.py")
    file.write_text(
        own.read_text() + "\nclass Fragile(MyTask):\n    def loss(self, outputs, targets):\n"
        "        if torch.initial_seed() == 1: raise RuntimeError('odd seed')\n"
        "        return super().loss(outputs, targets)\n"
    )
    wanted = Grid.of("fragile.py:Fragile", conditions=("iid",), seeds=3, steps=10)
    result = complete(wanted, Store(Path("runs.jsonl")))
    broken = [one.seed for one, record in result.records.items() if record.error is not None]
    assert broken == [1, 1, 1]
    assert "RuntimeError: odd seed" in str(result.records[wanted.specifications()[3]].error)
    assert len(result.records) == 9


def test_a_file_without_the_name_of_a_task_is_explained(own: Path) -> None:
    with pytest.raises(ArgumentError, match=r"Give my_task\.py:MyTask"):
        find("my_task.py")


@pytest.mark.parametrize("number", ["torch.tensor(0.5)", "torch.ones(1) / 2", "np.float32(0.5)"])
def test_a_score_is_any_kind_of_number(number: str, own: Path) -> None:
    scored = f"import numpy as np\nclass Mine(MyTask):\n    def score(self, *_): return {number}"
    result = complete(grid(with_more(own, scored)), Store(Path("runs.jsonl")))
    records = Store(Path("runs.jsonl")).read()[0].values()
    assert [record.score for record in records] == [0.5] * len(result.wanted)


def test_a_score_that_is_not_finite_fails_its_run_alone(own: Path) -> None:
    nan = "class Mine(MyTask):\n    def score(self, *_): return float('nan')"
    result = complete(grid(with_more(own, nan)), Store(Path("runs.jsonl")))
    errors = [record.error for record in result.records.values()]
    assert len(errors) == 6
    assert all(
        error and "A score is a finite number, more is better, got nan" in error for error in errors
    )


def test_data_are_checked_before_a_search_splits_them(own: Path) -> None:
    plain = (
        "class Mine(MyTask):\n    def data(self):\n"
        "        x = torch.utils.data.TensorDataset(torch.ones(64, 2)); return x, x"
    )
    searched = replace(grid(with_more(own, plain)), rates=(0.1, 0.3))
    with pytest.raises(ArgumentError, match="got a TensorDataset"):
        complete(searched, Store(Path("runs.jsonl")))
