import importlib
import json
from pathlib import Path

import pytest

from support.scripts import command

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "skewed_ranks.py"
VARIANTS = ["joined_batch_norm", "batch_norm_pooled", "sync_running", "sync_batch"]


def test_a_record_for_each_variant_and_none_is_done_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module(SCRIPT.stem)
    file = tmp_path / "records.jsonl"
    settings = ["--ranks", "2", "--seeds", "1", "--steps", "3", "--batch", "4", "--json", str(file)]
    assert script.main([*settings, "--variants", *VARIANTS]) == 0
    shown = capsys.readouterr().out
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["variant"] for record in records] == VARIANTS
    for record in records:
        assert record["environment"]["torch"]
        assert 0 <= record["accuracy"] <= 1
        assert record["loss"] > 0
    assert script.main([*settings, "--variants", *VARIANTS]) == 0
    assert capsys.readouterr().out == shown
    assert len(file.read_text().splitlines()) == len(VARIANTS)


def test_a_mistake_is_a_message() -> None:
    refused = command(SCRIPT.name, "--ranks", "11")
    assert refused.code == 2
    assert "there are 10, got 11 ranks" in refused.err
    assert "Traceback" not in refused.err
