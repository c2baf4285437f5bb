import csv
from dataclasses import replace
from pathlib import Path

import pytest

from renorm.errors import RecordError
from renorm.report.flat import write
from report.constructed import PLAIN, diverged, failed, finished


def test_a_row_a_run_with_all_that_has_no_length(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    first = replace(finished(PLAIN, 0.5, gap=0.25), environment={"torch": "2,1", "commit": None})
    other = replace(PLAIN, task='a "b", c.py:Mine', seed=1)
    write(path, [first, diverged(other), failed(replace(PLAIN, seed=2), "E: é")])
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert rows[0]["key"] == PLAIN.key
    assert {name: rows[0][name] for name in ("task", "lr", "score", "gap", "diverged_at")} == {
        "task": "digits",
        "lr": "0.1",
        "score": "0.5",
        "gap": "0.25",
        "diverged_at": "",
    }
    assert (rows[0]["environment.torch"], rows[0]["environment.commit"]) == ("2,1", "")
    assert rows[1]["task"] == other.task
    assert (rows[1]["score"], rows[1]["diverged_at"], rows[1]["environment.torch"]) == ("", "7", "")
    assert rows[2]["error"] == "E: é"
    assert "curve" not in rows[0]


def test_no_records_are_a_heading(tmp_path: Path) -> None:
    write(tmp_path / "runs.csv", [])
    assert (tmp_path / "runs.csv").read_text().startswith("key,task,model,normalizer,")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"runs.csv cannot be written: No such file"):
        write(tmp_path / "no" / "runs.csv", [])
