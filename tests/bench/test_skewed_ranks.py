import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "skewed_ranks.py"
VARIANTS = ["joined_batch_norm", "batch_norm_pooled", "sync_running", "sync_batch"]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_record_for_each_variant_and_none_is_done_twice(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    settings = ["--ranks", "2", "--seeds", "1", "--steps", "3", "--batch", "4", "--json", str(file)]
    done = call(*settings, "--variants", *VARIANTS)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["variant"] for record in records] == VARIANTS
    for record in records:
        assert record["environment"]["torch"]
        assert 0 <= record["accuracy"] <= 1
        assert record["loss"] > 0
    again = call(*settings, "--variants", *VARIANTS)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert len(file.read_text().splitlines()) == len(VARIANTS)


def test_a_mistake_is_a_message() -> None:
    refused = call("--ranks", "11")
    assert refused.returncode == 2
    assert "there are 10, got 11 ranks" in refused.stderr
    assert "Traceback" not in refused.stderr
