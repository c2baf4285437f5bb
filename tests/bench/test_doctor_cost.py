"""What a survey is said to cost, and that the benchmark runs."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ["--batches", "2", "--batch", "2", "--side", "33", "--turns", "1", "--threads", "1"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("doctor_cost")
    monkeypatch.setattr(module.torch, "set_num_threads", lambda threads: None)
    return module


def test_costs_are_ratios_to_plain_forwards_and_to_a_training_step(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = {"": [1.0, 2.0, 3.0], "quick": [1.0, 1.0, 4.0], "standard": [3.0, 5.0, 9.0], "deep": [9]}
    held = {script.TRAINING: 100, "quick": 90, "standard": 120, "deep": None}
    monkeypatch.setattr(script, "times", lambda setting, turns: took)
    monkeypatch.setattr(script, "held", lambda setting: held)
    found = {one.depth: one for one in script.costs(script.Setting(2, 2, 33, 1), 3)}
    assert (found["standard"].median_ratio, found["standard"].min_ratio) == (2.5, 3.0)
    assert [found[depth].memory_ratio for depth in script.DEPTHS] == [0.9, 1.2, None]
    assert "plain forwards: met; memory" in script.verdict(list(found.values()))


def test_it_runs_and_keeps_a_record_a_depth(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(setting: Any) -> dict[str, int | None]:
        return {what: script.resident(setting, what) for what in (script.TRAINING, "quick")}

    monkeypatch.setattr(script, "DEPTHS", ("quick",))
    monkeypatch.setattr(script, "held", here)
    monkeypatch.setattr(script, "verdict", lambda found: "")
    path = tmp_path / "cost.jsonl"
    assert script.main([*TINY, "--json", str(path)]) == 0
    (record,) = map(json.loads, path.read_text().splitlines())
    assert (record["depth"], record["batches"], record["turns"]) == ("quick", 2, 1)
    assert record["median_ratio"] > 0
    assert "quick" in capsys.readouterr().out


def test_a_mistake_is_told(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main(["--batches", "1"])
    assert "batches is at least 2, got 1" in capsys.readouterr().err
