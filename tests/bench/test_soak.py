import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def test_a_short_soak_passes(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    settings = ["--scenarios", "running_amp", "--steps", "60", "--overflows", "element", "noise"]
    command = [sys.executable, str(SCRIPT), *settings, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert record["scenario"] == "running_amp"
    first, second = record["ranks"]
    assert first["updates"] == second["updates"] > 0
    assert first["checksum"] == second["checksum"]
    assert first["overflows"] > 0
    assert first["disk"] >= 20


def test_a_mistake_is_a_message() -> None:
    command = [sys.executable, str(SCRIPT), "--scenarios", "runing"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "Did you mean 'running'?" in refused.stderr
    assert "Traceback" not in refused.stderr
