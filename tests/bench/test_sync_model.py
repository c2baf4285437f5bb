"""The cost model of shared statistics, by hand; and its reading of measured rows."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from renorm.errors import RecordError

FOLDER = str(Path(__file__).parents[2] / "benchmarks")


def script(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module(name)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    return script(monkeypatch, "sync_model")


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Any:
    return script(monkeypatch, "sync_records")


def row(records: Any, **changes: Any) -> Any:
    base = records.Row(
        processes=2,
        latency_ms=1.0,
        provider="nn.BatchNorm",
        baseline="nn.BatchNorm",
        median_ms=40.0,
        min_ms=39.0,
        median_ratio=1.0,
        min_ratio=1.0,
        collectives={"statistics": 0, "gradients": 2, "buffers": 2},
        bytes={"statistics": 0, "gradients": 1000, "buffers": 100},
        exchange_ms=1.1,
        blocks=4,
        steps=2,
        settings={"norm_layers": 21},
        cores=2,
        environment={"torch": "2.13.0"},
    )
    return replace(base, **changes)


def test_short_and_long_messages_by_hand(model: Any) -> None:
    network = model.Network(alpha=10.0, beta=1.0)
    # 8 workers are 3 hops: 3 (10 + 4), and 2 * 3 * 10 + 2 * 7/8 * 400 = 60 + 700
    assert network.all_reduce(4, 8) == 42
    assert network.all_reduce(400, 8) == 760
    assert network.all_gather(4, 8) == 30 + 7 * 4
    assert network.all_reduce(4, 5) == 42  # 5 workers need 3 hops, too


def test_a_step_of_a_small_net_by_hand(model: Any) -> None:
    network = model.Network(alpha=100.0, beta=1.0)
    # 2 workers, 1 hop; layers of 1 and 3 channels: 8 * 3 and 8 * 7 bytes, forward and backward
    assert model.batch(network, [1, 3], 2) == 2 * (2 * 100 + 24 + 56)
    # one exchange of 8 * (2 * 4 + 2) bytes
    assert model.running(network, [1, 3], 2) == 100 + 80
    # gathered: 4 * 3 and 4 * 7 bytes of one other
    assert model.sync_batch_norm(network, [1, 3], 2) == 4 * 100 + 12 + 28 + 8 + 24


def test_resnet50_has_the_layers_that_the_docs_say(model: Any) -> None:
    sizes = model.resnet50()
    assert (len(sizes), sum(sizes)) == (53, 26_560)


def test_latencies_that_a_step_waits_for(model: Any, records: Any) -> None:
    joint = {"statistics": 42, "gradients": 2, "buffers": 2}
    rows = [
        row(records, provider=provider, latency_ms=latency, median_ms=took, collectives=sent)
        for provider, sent, times in (
            ("nn.BatchNorm", joint | {"statistics": 0}, (45, 40, 58)),
            ('sync="batch"', joint, (80, 90, 486)),
        )
        for latency, took in zip((0.0, 1.0, 10.0), times, strict=True)
    ]
    found = {p.provider: (p.predicted, p.measured) for p in model.points(rows)}
    assert found == {"nn.BatchNorm": (2, 2.0), 'sync="batch"': (44, 44.0)}


def test_one_latency_has_no_slope(model: Any, records: Any) -> None:
    with pytest.raises(RecordError, match="a slope needs 2"):
        model.points([row(records), row(records, latency_ms=0.0)])


def test_records_are_read_as_written_the_latest_of_each(records: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    first, again, other = (
        row(records),
        row(records, median_ms=50.0),
        row(records, provider='sync="batch"'),
    )
    records.append(file, [first, other])
    records.append(file, [again])
    assert records.read(file) == [again, other]


@pytest.mark.parametrize("line", ["{", "[]", '{"schema": 1}'])
def test_another_file_is_refused(records: Any, tmp_path: Path, line: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(RecordError, match=r"rows\.jsonl, line 1 is"):
        records.read(file)


def test_the_tables(model: Any, records: Any, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "rows.jsonl"
    records.append(file, [row(records, latency_ms=ms, median_ms=39 + ms) for ms in (1.0, 10.0)])
    assert model.main(["--measured", str(file)]) == 0
    out = capsys.readouterr().out
    assert "4096" in out
    assert out.split()[-5:] == ["2", "nn.BatchNorm", "2", "1.0", "0.0"]
    assert model.main(["--measured", str(tmp_path / "none")]) == 2
    assert "Write it by" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--alpha-us", "5"], ["--alpha-us", "0", "--gb-per-s", "1"]])
def test_half_a_network_is_refused(model: Any, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        model.main(wrong)
    assert refused.value.code == 2


def test_scripts_leave_the_path_as_it_was() -> None:
    assert FOLDER not in sys.path
