import signal
from dataclasses import replace
from pathlib import Path

import pytest

from renorm.errors import ArgumentError, RecordError
from renorm.lab.store import Store
from renorm.report.records import Record, to_line
from report.constructed import PLAIN, diverged, finished
from support.ranks import prepared

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
    assert store.read()[0][PLAIN].score == 0.75


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


def write(store: Store) -> None:
    with store.writing():
        pass


def test_a_path_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / "no" / "runs.jsonl", "No such file or directory"),
        (tmp_path / "file" / "runs.jsonl", "Not a directory"),
    ):
        for act in (lambda s: s.append(FIRST), write):
            with pytest.raises(RecordError, match=reason):
                act(Store(path))
    with pytest.raises(RecordError, match="Is a directory"):
        Store(tmp_path).read()


def test_to_write_makes_an_empty_file_and_keeps_a_full_one(store: Store) -> None:
    write(store)
    assert store.path.read_bytes() == b""
    store.append(FIRST)
    write(store)
    assert store.read() == (by_run(FIRST), None)


def test_a_second_writer_is_refused_until_the_first_has_ended(store: Store) -> None:
    other = Store(store.path)
    with store.writing():
        store.append(FIRST)
        with pytest.raises(RecordError, match=r"Another process is writing to .*runs\.jsonl"):
            write(other)
        assert other.read() == (by_run(FIRST), None)
    write(other)
    other.append(SECOND)
    assert store.read() == (by_run(FIRST, SECOND), None)


def test_a_file_has_one_writer_by_whatever_name(store: Store) -> None:
    link = store.path.with_name("link.jsonl")
    link.symlink_to(store.path.name)
    refused = pytest.raises(RecordError, match="Another process is writing")
    with store.writing(), refused, Store(link).writing():
        pass


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_explained(path: str) -> None:
    with pytest.raises(ArgumentError, match=r"The results file needs a name, got .*compare\.jsonl"):
        Store(Path(path))


def append(path: Path, name: str) -> None:
    for seed in range(20):
        run = replace(PLAIN, seed=seed, normalizer=name)
        Store(path).append(Record(run, error="x" * 10_000))


def test_records_of_several_processes_are_all_there_and_whole(store: Store) -> None:
    process = prepared().Process
    writers = [process(target=append, args=(store.path, name)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    records, warning = store.read()
    assert warning is None
    assert sorted((one.normalizer, one.seed) for one in records) == [
        (name, seed) for name in ("one", "two") for seed in range(20)
    ]


def test_a_full_disk_leaves_what_was_there(store: Store) -> None:
    resource = pytest.importorskip("resource", reason="limits the size of a file")
    store.append(FIRST)
    before = store.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        with pytest.raises(RecordError, match="cannot be used: File too large"):
            store.append(SECOND)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert store.path.read_bytes() == before
    store.append(SECOND)
    assert store.read() == (by_run(FIRST, SECOND), None)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_results_file(name: str) -> None:
    with pytest.raises(RecordError, match=r"is a device or a pipe\. Give"):
        Store(Path(name)).read()
