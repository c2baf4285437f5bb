import json
from pathlib import Path

import pytest
import torch

from renorm import cli
from renorm.lab import pool
from renorm.lab.papers import STUDIES
from renorm.lab.store import Store
from renorm.report.records import Corrections, Record, Specification

ALL = (0.9, 0.95, 1.0, 1.05, 1.1)
SMOKE = ["reproduce", "batch-renorm", "--workers", "1"]


class Training:
    """Stands for training: batch renorm at 90 %, everything else at 20 %; each seed a bit more."""

    def __init__(self) -> None:
        self.done: list[Specification] = []
        self.fails: set[int] = set()
        self.interrupt: int | None = None

    def __call__(self, one: Specification, data: Path | None = None) -> Record:
        if len(self.done) == self.interrupt:
            self.interrupt = None
            raise KeyboardInterrupt
        self.done.append(one)
        if len(self.done) in self.fails:
            raise ValueError("<b>planted</b>")
        score = (0.9 if one.normalizer.startswith("batch_renorm") else 0.2) + one.seed / 1000
        corrections = (Corrections(1, 3.0, 5.0, ALL, ALL, 0.02, 0.0),)
        curve = ((one.steps // 2, score / 2), (one.steps, score))
        metric = "accuracy, copies of images"
        return Record(one, metric, True, score, score, score, 0.1, curve, corrections)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Training:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    training = Training()
    monkeypatch.setattr(pool, "run", training)
    return training


def test_a_verdict_on_each_claim(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMOKE, "--markdown", "tables.md"]) == cli.DONE
    captured = capsys.readouterr()
    out = " ".join(captured.out.split())
    study = STUDIES["batch-renorm"]
    for part in (study.title, study.source, "scale smoke, 2 seeds"):
        assert part in out
    assert "Batch renorm is better with groups of 2 70.0 ± 0.0 points reproduced" in out
    count = len(study.claims("smoke"))
    assert f"42 runs, 0.0 minutes of processor time. Of {count} claims: " in out
    assert "Records: batch-renorm-smoke.jsonl\nPage: batch-renorm-smoke.html" in captured.err
    page = Path("batch-renorm-smoke.html").read_text()
    assert page.count("70.0 ± 0.0 points") >= 5
    assert "renorm reproduce batch-renorm --scale smoke --out batch-renorm-smoke.jsonl" in page
    table = Path("tables.md").read_text()
    for text in (out, page, table):
        assert "Scores: accuracy, copies of images, %." in text
    assert "At smoke scale small nets" in page
    assert (
        "| Batch renorm is better with groups of 2 |  | 70.0 ± 0.0 points | reproduced |" in table
    )
    assert all(line.count(" | ") in (2, 3) for line in table.splitlines() if line[:2] == "| ")


def test_what_is_interrupted_goes_on(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    training.interrupt = 5
    assert cli.main(SMOKE) == cli.INTERRUPTED
    captured = capsys.readouterr()
    assert "Run the same command again" in captured.err
    assert "not run" in captured.out
    assert cli.main(SMOKE) == cli.DONE
    assert len(training.done) == len(set(training.done)) == 42
    assert len(Store(Path("batch-renorm-smoke.jsonl")).read()[0]) == 42


def test_a_failed_run_is_told_and_tried_again(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    training.fails = {1}
    assert cli.main(SMOKE) == cli.SOME_FAILED
    assert "1/2 (1 failed)" in capsys.readouterr().out
    assert cli.main(SMOKE) == cli.DONE
    assert len(training.done) == 43


def test_again_trains_nothing(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([*SMOKE, "--seeds", "1"])
    first = capsys.readouterr().out
    count = len(training.done)
    assert cli.main([*SMOKE, "--seeds", "1", "--again"]) == cli.DONE
    assert (capsys.readouterr().out, len(training.done)) == (first, count)
    assert cli.main([*SMOKE, "--again"]) == cli.SOME_FAILED
    assert "1/2 (1 missing)" in capsys.readouterr().out


def test_nothing_is_shown_again_without_a_file(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*SMOKE, "--out", "mistyped.jsonl", "--again"]) == cli.USAGE
    assert "no results file mistyped.jsonl to show again" in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_runs_that_all_diverged_are_told(
    training: Training, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "run", lambda one, data=None: Record(one, diverged_at=3))
    assert cli.main(SMOKE) == cli.DONE
    assert "- (2 diverged)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["batch-renrom"], "no paper 'batch_renrom'. Did you mean 'batch_renorm'"),
        (["batch-renorm", "--scale", "labtop"], "no scale 'labtop'. Did you mean 'laptop'"),
        (["batch-renorm", "--seeds", "0"], "at least 1 (an interval needs 2), got 0"),
        (["batch-renorm", "--workers", "0"], "at least 1, got 0"),
        (["batch-renorm", "--out", "gone/runs.jsonl"], "in a folder that is there"),
        (["batch-renorm", "--out", "page.html"], "got page.html for the results"),
        (["batch-renorm", "--markdown", "gone/a.md"], "a folder that is there, got gone/a.md"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run(
    training: Training, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(["reproduce", *arguments]) == cli.USAGE
    assert message in capsys.readouterr().err
    assert not training.done


def test_missing_data_are_told_with_where_they_were_looked_for(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["reproduce", "batch-norm", "--scale", "laptop", "--data-dir", "nowhere"]
    assert cli.main(arguments) == cli.USAGE
    error = capsys.readouterr().err
    assert "MNIST is not complete" in error
    assert "nowhere" in error
    assert not training.done


def test_a_file_of_another_schema_is_refused_and_left_alone(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main([*SMOKE, "--seeds", "1"])
    path = Path("batch-renorm-smoke.jsonl")
    first, _, rest = path.read_text().partition("\n")
    older = json.dumps({**json.loads(first), "schema": 2}) + "\n" + rest
    path.write_text(older)
    assert cli.main(SMOKE) == cli.USAGE
    assert "line 1 is no record of renorm: its schema is not 3" in capsys.readouterr().err
    assert path.read_text() == older


def test_help_names_every_paper(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["reproduce", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in STUDIES:
        assert f"{name}:" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_scale_for_a_gpu_asks_for_one(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reproduce", "batch-norm", "--scale", "gpu"]) == cli.USAGE
    assert "one of cpu on this machine, got 'cuda'" in capsys.readouterr().err
    assert not training.done
