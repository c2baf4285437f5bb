import json
from pathlib import Path

import pytest

from bench.tiny import RECORD
from renorm.bench.records import append, check_writable, from_line, to_line
from renorm.errors import RecordError


def test_round_trip() -> None:
    assert from_line(to_line(RECORD)) == RECORD
    assert json.loads(to_line(RECORD))["schema"] == 2


def test_shares_of_the_copy_bandwidth() -> None:
    assert RECORD.name == "2x3x4x4"
    assert RECORD.of_copy == 0.25
    assert RECORD.of_copy_in_two_passes == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "It is not JSON"),
        ("[]", "no benchmark record of schema 2"),
        ('{"schema": 1}', "no benchmark record of schema 2"),
        ('{"schema": 2, "suit": 1}', "missing or unknown: allocator, baseline"),
    ],
)
def test_other_lines_are_refused(line: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        from_line(line)


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    check_writable(path)
    append(path, RECORD)
    append(path, RECORD)
    assert [from_line(line) for line in path.read_text().splitlines()] == [RECORD, RECORD]


def test_a_file_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="Give another file, in a folder that is there"):
        check_writable(tmp_path / "no" / "results.jsonl")
