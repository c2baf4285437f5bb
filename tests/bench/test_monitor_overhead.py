"""What a monitor is said to cost, and that the benchmark runs."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from renorm import convert
from renorm.bench import resnet
from renorm.lab.models.resnet import Block

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("monitor_overhead")
    monkeypatch.setattr(module.allocator, "keep_freed_pages", lambda: "as torch does")
    monkeypatch.setattr(module.torch, "set_num_threads", lambda threads: None)
    return module


def a_cost(script: Any, step: str, ratio: float, median: float = 1.0) -> Any:
    return script.Cost(step, median, 1.0, ratio, 2 * ratio, 3)


def three(script: Any, unobserved: float, observed: float, median: float = 1.0) -> list[Any]:
    ratios = {script.WITHOUT: 1.0, script.UNOBSERVED: unobserved, script.OBSERVED: observed}
    return [a_cost(script, step, ratio, median) for step, ratio in ratios.items()]


def test_a_training_takes_longer_by_what_all_its_steps_do(script: Any) -> None:
    found = three(script, 1.01, 1.51)
    assert script.longer(found, 50) == pytest.approx(100 * ((49 * 1.01 + 1.51) / 50 - 1))
    assert script.longer(found, 1) == pytest.approx(51)
    assert script.longer(found, 50, "min_ratio") == pytest.approx(104)


@pytest.mark.parametrize(
    ("unobserved", "median", "words"),
    [(1.0, 1.0, ": met"), (1.03, 1.0, ": not met"), (1.0, 2.5, "not judged")],
)
def test_the_verdict(script: Any, unobserved: float, median: float, words: str) -> None:
    setting = script.Setting("renorm", 4, 64, "cpu", 1, 50)
    assert words in script.verdict(setting, three(script, unobserved, 1.5, median))


def test_it_runs_and_keeps_what_it_measured(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def tiny() -> nn.Module:
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, resnet.CLASSES)]
        return nn.Sequential(Block(3, 8, 2), *head)

    nets = {"nn.BatchNorm": tiny, "renorm": lambda: convert(tiny())}
    monkeypatch.setattr(script.resnet, "variants", lambda provider: nets)
    file = tmp_path / "monitor.jsonl"
    code = script.main(["--batches", "2", "--side", "33", "--turns", "2", "--json", str(file)])
    assert code == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    steps = ["without", "unobserved", "observed"]
    assert [(line["net"], line["step"]) for line in lines] == [
        (net, step) for net in nets for step in steps
    ]
    assert {line["turns"] for line in lines} == {2}
    assert capsys.readouterr().out.count("one step in 50 observed") == 2


def test_a_file_that_cannot_be_written_is_named(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(script, "costs", lambda *arguments: three(script, 1.0, 1.5))
    assert script.main(["--json", str(tmp_path / "none" / "monitor.jsonl")]) == 2
    assert "none/monitor.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["turns", "every", "threads", "side", "batches"])
def test_bad_options_are_named(script: Any, option: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script.main([f"--{option}", "0"])
    assert option in capsys.readouterr().err
