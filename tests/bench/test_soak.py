import json
from pathlib import Path

from support.scripts import command

SCRIPT = "soak.py"


def test_a_short_soak_passes(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    settings = ["--scenarios", "running_amp", "--steps", "60", "--overflows", "element", "noise"]
    done = command(SCRIPT, *settings, "--json", str(file))
    assert done.code == 0, done.err
    (record,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert record["scenario"] == "running_amp"
    first, second = record["ranks"]
    assert first["updates"] == second["updates"] > 0
    assert first["checksum"] == second["checksum"]
    assert first["overflows"] > 0
    assert first["disk"] >= 20


def test_a_mistake_is_a_message() -> None:
    refused = command(SCRIPT, "--scenarios", "runing")
    assert refused.code == 2
    assert "Did you mean 'running'" in refused.err
    assert "Traceback" not in refused.err
