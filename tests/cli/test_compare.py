import html
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from renorm import cli
from renorm.lab import pool
from renorm.lab.conditions import CONDITIONS
from renorm.lab.normalizers import NORMALIZERS
from renorm.lab.store import Store
from renorm.lab.tasks import TASKS
from renorm.report.records import Record, Specification
from report.constructed import diverged, finished

SMALL = ["compare", "--conditions", "clustered", "--seeds", "2", "--workers", "1", "--steps", "10"]


class Training:
    """Stands for training: batch renorm at 90 %, everything else at 20 %."""

    def __init__(self) -> None:
        self.done: list[Specification] = []
        self.event: dict[int, BaseException | str] = {}

    def __call__(self, specification: Specification, data: Path | None = None) -> Record:
        event = self.event.get(len(self.done))
        if isinstance(event, BaseException):
            if isinstance(event, Exception):
                self.done.append(specification)
            raise event
        self.done.append(specification)
        if event == "diverge":
            return diverged(specification)
        high = specification.normalizer == "batch_renorm"
        return finished(specification, 0.9 if high else 0.2, gap=0.0 if high else 0.7)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Training:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    training = Training()
    monkeypatch.setattr(pool, "run", training)
    return training


def test_table_conclusion_and_records(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(SMALL) == cli.DONE == 0
    captured = capsys.readouterr()
    out = " ".join(captured.out.split())
    assert "clustered batch norm 20.0 ± 0.0 +70.0 ± 0.0 70.0 ± 0.0 2/2" in out
    assert "clustered: statistics per 4 examples of ONE class; groups take classes in turn" in out
    assert "Batch renorm beats batch norm by 70.0 ± 0.0 points in clustered." in out
    assert "6 of 6: group_norm, clustered, seed 1: 20.0 % (0 s left)" in captured.err
    assert "Records: compare.jsonl\nPage: compare.html" in captured.err
    assert "by 70.0 ± 0.0 points in clustered" in Path("compare.html").read_text()
    assert len(Store(Path("compare.jsonl")).read()[0]) == 6


def test_a_second_call_trains_nothing(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(SMALL)
    first = capsys.readouterr().out
    assert cli.main(SMALL) == 0
    assert len(training.done) == 6
    assert capsys.readouterr().out == first


def test_every_option_reaches_the_runs(training: Training) -> None:
    options = (
        "--normalizers batch-norm,group_norm slow_batch_norm --conditions iid microbatch "
        "--seeds 1 --steps 12 --lr 0.5 --batch-size 16 --group-size 8 --out other.jsonl"
    )
    assert cli.main(["compare", "--workers", "1", *options.split()]) == 0
    assert training.done == [
        Specification("digits", "convnet", normalizer, condition, 0, 12, 0.5, 16, 8)
        for condition in ("iid", "microbatch")
        for normalizer in ("batch_norm", "group_norm", "slow_batch_norm")
    ]
    assert Path("other.jsonl").exists()
    assert not Path("compare.jsonl").exists()


def test_the_command_on_the_page_is_of_the_same_runs(training: Training) -> None:
    rates = ["--lr", "0.123456789", "--rates", "0.0123456789", "0.5"]
    assert cli.main([*SMALL, *rates]) == 0
    command = Path("compare.html").read_text()
    assert "--lr 0.123456789 " in command
    assert "--rates 0.0123456789 0.5" in command


def test_failed_runs_are_shown_and_the_exit_code_is_1(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    training.event = {1: OSError("disk on fire")}
    assert cli.main(SMALL) == cli.SOME_FAILED == 1
    captured = capsys.readouterr()
    assert "failed: batch_renorm, clustered, seed 0: OSError: disk on fire" in captured.out
    assert "2 of 6: batch_renorm, clustered, seed 0: failed" in captured.err


def test_a_diverged_run_is_a_result(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    training.event = {1: "diverge"}
    assert cli.main(SMALL) == 0
    captured = capsys.readouterr()
    assert "1 diverged" in captured.out
    assert "batch_renorm, clustered, seed 0: diverged at step 7" in captured.err


def test_ctrl_c_shows_the_table_so_far_and_exits_130(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    training.event = {4: KeyboardInterrupt()}
    assert cli.main(SMALL) == 130
    captured = capsys.readouterr()
    assert "Of 6 runs: 2 missing." in " ".join(captured.out.split())
    assert "Run the same command again" in captured.err
    assert len(Store(Path("compare.jsonl")).read()[0]) == 4


def test_a_torn_line_is_reported(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(SMALL)
    path = Path("compare.jsonl")
    path.write_bytes(path.read_bytes()[:-9])
    assert cli.main(SMALL) == 0
    assert "line 6 was cut off" in capsys.readouterr().err
    assert len(training.done) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--normalizers batchnorm", "Did you mean 'batch_norm'"),
        ("--normalizers ,", "At least one normalizer is needed"),
        ("--conditions clusterd", "There are iid, microbatch, clustered, "),
        ("--seeds -1", "got -1"),
        ("--steps 0", "got 0"),
        ("--lr -1", "got -1.0"),
        ("--batch-size 30", "a batch of 30 and groups of 4"),
        ("--workers 0", "got 0"),
        ("--out no/such/folder.jsonl", "Give another file, in a folder that is there"),
        ("--task digts", "Did you mean 'digits'"),
        ("--model resnet", "no model 'resnet'"),
        ("--task nowhere.py:Mine", "no file nowhere.py"),
        ("--rates 0.1 -1", "above 0 and finite, got -1.0"),
        ("--memory 0", "above 0 and at most 4,294,967,296, got 0.0"),
    ],
)
def test_a_mistake_is_explained_with_exit_code_2(
    options: str, message: str, training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", *options.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert training.done == []


def test_a_file_of_another_kind_is_refused(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("compare.jsonl").write_text("my notes\n")
    assert cli.main(SMALL) == 2
    assert "compare.jsonl, line 1 is no record of renorm" in capsys.readouterr().err
    assert Path("compare.jsonl").read_text() == "my notes\n"


def test_the_page_is_not_written_over_the_results(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*SMALL, "--out", "runs.html"]) == cli.USAGE
    assert "Give runs.jsonl." in capsys.readouterr().err
    assert not training.done
    assert not Path("runs.html").exists()


def test_help_explains_conditions_columns_and_resuming(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "each group is of ONE class, as workers see it whose shards are sorted",
        "How to read the table",
        "a second call does the missing runs only",
        "[default: compare.jsonl]",
        "renorm compare --conditions clustered --seeds 10",
        *TASKS,
        *CONDITIONS,
        *NORMALIZERS,
    ):
        assert part in text


def test_the_command_on_the_page_does_the_same_runs(training: Training) -> None:
    options = "--conditions iid --group-size 8 --rates 0.1 0.2 --seeds 1 --out it.jsonl --workers 1"
    assert cli.main(["compare", *options.split()]) == 0
    assert len(training.done) == 9
    shown = re.search(r"renorm (compare .*?)<", Path("it.html").read_text())
    assert shown is not None
    assert cli.main([*shlex.split(html.unescape(shown[1])), "--workers", "1"]) == 0
    assert len(training.done) == 9


def test_a_sweep_tries_rates_around_the_tasks_own(training: Training) -> None:
    assert cli.main([*SMALL, "--sweep-lr"]) == 0
    tried = {one.lr for one in training.done if one.split == "validation"}
    assert tried == {0.011, 0.033, 0.1, 0.3}


def test_a_task_of_ones_own_from_template_to_page(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "--init"]) == 0
    assert "renorm compare --task my_task.py:MyTask" in capsys.readouterr().err
    assert training.done == []
    assert cli.main(["compare", "--init"]) == 2
    assert cli.main([*SMALL, "--task", "my_task.py:MyTask"]) == 0
    assert {one.task for one in training.done} == {"my_task.py:MyTask"}
    assert "my_task.py:MyTask" in Path("compare.html").read_text()


def test_a_download_that_cannot_be_is_refused(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "--download"]) == 2
    assert "nothing that can be downloaded for the task digits" in capsys.readouterr().err


def test_a_download_is_tried_before_anything_else(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    entry = replace(TASKS["mnist"], fetch=asked.append)
    monkeypatch.setitem(TASKS, "mnist", entry)
    assert cli.main(["compare", "--task", "mnist", "--download", "--data-dir", "there"]) == 2
    assert asked == [Path("there")]
    assert training.done == []


def test_real_runs_end_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "--seeds", "1", "--steps", "10", "--workers", "1"]
    assert cli.main(arguments) == 0
    assert "One seed says nothing about spread" in " ".join(capsys.readouterr().out.split())
    records, warning = Store(Path("compare.jsonl")).read()
    assert len(records) == 9
    assert warning is None
    assert all(record.environment["torch"] for record in records.values())
