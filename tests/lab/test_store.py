from dataclasses import replace
from pathlib import Path

import pytest

from renorm.errors import RecordError
from renorm.lab.store import Store
from renorm.report.records import Record, to_line
from report.constructed import PLAIN, diverged, finished

FIRST, SECOND = finished(PLAIN, 0.5), diverged(replace(PLAIN, seed=1))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs.jsonl")


def by_run(*records: Record) -> dict:
    return {record.specification: record for record in records}


def test_no_file_is_no_records(store: Store) -> None:
    assert store.read() == ({}, None)
    assert not store.path.exists()


def test_records_come_back_one_a_line(store: Store) -> None:
    store.append(FIRST)
    store.append(SECOND)
    assert store.read() == (by_run(FIRST, SECOND), None)
    assert store.path.read_text() == f"{to_line(FIRST)}\n{to_line(SECOND)}\n"


def test_the_last_record_of_a_run_counts(store: Store) -> None:
    store.append(FIRST)
    store.append(finished(PLAIN, 0.75))
    assert store.read()[0][PLAIN].accuracy == 0.75


@pytest.mark.parametrize("cut", [1, 5, 12, 200, -1])
def test_a_torn_last_line_is_reported_and_written_over(store: Store, cut: int) -> None:
    store.append(FIRST)
    torn = to_line(SECOND)[:cut]
    with store.path.open("a") as file:
        file.write(torn)
    records, warning = store.read()
    assert records == by_run(FIRST)
    assert warning is not None
    assert "line 2 was cut off" in warning
    store.append(SECOND)
    assert store.path.read_text() == f"{to_line(FIRST)}\n{to_line(SECOND)}\n"


def test_a_last_line_that_lacks_its_newline_alone_is_kept(store: Store) -> None:
    store.path.write_text(to_line(FIRST))
    assert store.read() == (by_run(FIRST), None)
    store.append(SECOND)
    assert store.read() == (by_run(FIRST, SECOND), None)


@pytest.mark.parametrize("garbage", ["hello", "", '{"schema": 1}', "\x00\x00"])
def test_a_line_that_is_no_record_is_refused_with_its_number(store: Store, garbage: str) -> None:
    store.path.write_text(f"{to_line(FIRST)}\n{garbage}\n{to_line(SECOND)}\n")
    with pytest.raises(RecordError, match="line 2 is no record") as caught:
        store.read()
    assert str(store.path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(store: Store) -> None:
    store.path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(RecordError, match="line 1 is no record"):
        store.read()


@pytest.mark.parametrize("content", ["my thesis", '{"my": "data"}', "a\nb"])
def test_a_file_of_another_kind_is_never_written_to(store: Store, content: str) -> None:
    store.path.write_text(content)
    for act in (store.read, lambda: store.append(FIRST)):
        with pytest.raises(RecordError, match="no record of renorm"):
            act()
    assert store.path.read_text() == content


def test_a_path_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "no" / "runs.jsonl", "No such file or directory"),
    ):
        for act in (Store(path).check_writable, lambda path=path: Store(path).append(FIRST)):
            with pytest.raises(RecordError, match=reason):
                act()
    with pytest.raises(RecordError, match="Is a directory"):
        Store(tmp_path).read()


def test_checking_makes_an_empty_file_and_keeps_a_full_one(store: Store) -> None:
    store.check_writable()
    assert store.path.read_bytes() == b""
    store.append(FIRST)
    store.check_writable()
    assert store.read() == (by_run(FIRST), None)
