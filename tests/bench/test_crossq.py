"""CrossQ's benchmark: runs are kept and found again, agents take turns, mistakes are named."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from renorm.lab.tasks import control
from renorm.lab.tasks.control import BASELINE

pytest.importorskip("sb3_contrib", reason="trains with CrossQ of sb3-contrib, not installed")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--steps", "102", "--widths", "8", "--batch", "8", "--warmups", "2", "--turns", "1"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(control, "EPISODES", 1)
    monkeypatch.setenv("COLUMNS", "120")
    module = importlib.import_module("crossq")
    monkeypatch.setattr(module.allocator, "keep_freed_pages", lambda: "left as it is")
    return module


def a_run(script: Any, variant: str = "batch_renorm", seed: int = 0) -> Any:
    return script.Run(variant, warmup=2, seed=seed, steps=102, width=8, batch=8, lr=1e-3)


def figures(script: Any, final: float | None) -> Any:
    return script.Figures(final, final, [[102, final]] if final else [], None, 1.0, 1.0)


def test_what_was_interrupted_goes_on_and_is_the_same(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, done = script.train, []

    def failing(run: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(run)
        return train(run)

    path = tmp_path / "runs.jsonl"
    command = [*SMALL, "--seeds", "1", "--only-returns", "--json", str(path)]
    monkeypatch.setattr(script, "train", failing)
    assert script.main(command) == script.INTERRUPTED
    (first,) = path.read_text().splitlines()
    monkeypatch.setattr(script, "train", train)
    assert script.main(command) == script.DONE
    lines = path.read_text().splitlines()
    assert lines[0] == first
    assert [json.loads(line)["variant"] for line in lines] == [BASELINE.name, "batch_renorm"]
    assert json.loads(first)["environment"]["sb3-contrib"]
    found = script.read(path)
    again = train(a_run(script))
    assert again.curve == found[a_run(script)].curve
    assert again.best == max(value for _, value in again.curve) >= again.final
    assert script.main(command) == script.DONE
    assert path.read_text().splitlines() == lines


def test_times_are_of_three_updates_and_do_not_disturb_the_runs_of_the_file(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.jsonl"
    assert script.main([*SMALL, "--only-time", "--json", str(path)]) == script.DONE
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["variant"], r["warmup"]) for r in records] == [
        (variant, warmup) for warmup in (2, 0) for variant in (BASELINE.name, "batch_renorm")
    ]
    for record in records:
        assert record["median_ms"] >= record["min_ms"] > 0
        assert (record["threads"], record["turns"]) == (1, 1)
        assert (record["median_ratio"] == 1) == (record["variant"] == BASELINE.name)
    assert script.read(path) == {}
    assert "batch_renorm" in capsys.readouterr().out


def test_gains_are_seed_by_seed_and_a_diverged_run_is_counted(script: Any) -> None:
    found = {
        a_run(script, BASELINE.name, 0): figures(script, -150.0),
        a_run(script, BASELINE.name, 1): figures(script, -170.0),
        a_run(script, "batch_renorm", 0): figures(script, -149.0),
        a_run(script, "batch_renorm", 1): figures(script, -169.0),
        a_run(script, "none", 0): figures(script, None),
        a_run(script, "none", 1): figures(script, -1000.0),
    }
    columns = {c.header: list(c.cells) for c in script.table(list(found), found, 2).columns}
    assert columns["variant"] == [BASELINE.name, "batch_renorm", "none"]
    assert columns["gain"] == ["-", "1.0 ± 0.0", "-830.0"]
    assert columns["return"][0] == "-160.0 ± 127.1"
    assert columns["runs"] == ["2/2", "2/2", "1/2"]


def test_a_file_of_something_else_and_wrong_options_are_refused(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"schema": 1, "suite": "other"}\n')
    assert script.main([*SMALL, "--json", str(path)]) == script.USAGE
    assert "line 1 is no record of a run" in capsys.readouterr().err
    missing = str(tmp_path / "no" / "runs.jsonl")
    assert script.main(["--json", missing]) == script.USAGE
    assert "cannot be used" in capsys.readouterr().err
    for wrong in (["--seeds", "0"], ["--warmups", "-1"], ["--variants", "group_norm"]):
        with pytest.raises(SystemExit, match="2"):
            script.main(wrong)
