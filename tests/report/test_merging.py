from dataclasses import replace
from pathlib import Path

import pytest

from renorm.errors import RecordError
from renorm.report.merging import Merged, find, groups, merge
from renorm.report.records import Record, to_line
from report.constructed import PLAIN, diverged, failed, finished, wanted
from report.whole import tried

LINE = to_line(finished(PLAIN, 0.5)) + "\n"


def merged(*stores: list[Record]) -> Merged:
    return merge(
        (f"{place}.jsonl", {one.specification: one for one in store})
        for place, store in enumerate(stores)
    )


def test_folders_are_searched_and_files_of_another_kind_left_aside(tmp_path: Path) -> None:
    deep = tmp_path / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "x.jsonl").write_text(LINE)
    (tmp_path / "a.jsonl").write_text(LINE)
    (tmp_path / "torn.jsonl").write_text(LINE[:40])
    (tmp_path / "old.jsonl").write_text('{"schema": 1, "specification": {}}\n')
    (tmp_path / "notes.txt").write_text(LINE)
    others = {"bench.jsonl": '{"schema": 2, "suite": "nchw"}\n', "empty.jsonl": "", "x.jsonl": "?"}
    for name, text in others.items():
        (tmp_path / name).write_text(text)
    found = find([tmp_path, tmp_path / "notes.txt", tmp_path / "a.jsonl"])
    names = [path.relative_to(tmp_path).as_posix() for path in found.stores]
    assert names == ["a.jsonl", "b/c/x.jsonl", "old.jsonl", "torn.jsonl", "notes.txt"]
    assert [path.name for path in found.skipped] == list(others)


def test_no_store_and_no_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bench.jsonl").write_text("{}\n")
    with pytest.raises(RecordError, match=r"No results file of renorm compare \(\*.jsonl\) in"):
        find([tmp_path])
    with pytest.raises(RecordError, match=r"There is no file or folder .*elsewhere"):
        find([tmp_path / "elsewhere"])


def test_what_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(LINE)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecordError, match=r"a.jsonl cannot be read: Permission denied"):
        find([tmp_path])


def test_stores_of_different_runs_are_put_together() -> None:
    runs = wanted("batch_norm batch_renorm", seeds=2)
    done = [finished(one, 0.5) for one in runs]
    got = merged(done[:3], done[2:])
    assert got.records == tuple(done)
    assert got.conflicts == ()


@pytest.mark.parametrize(
    ("first", "second", "used", "conflict"),
    [
        (finished(PLAIN, 0.5), finished(PLAIN, 0.6), 1, True),
        (finished(PLAIN, 0.5), diverged(PLAIN), 1, True),
        (finished(PLAIN, 0.5), failed(PLAIN), 0, False),
        (failed(PLAIN), finished(PLAIN, 0.5), 1, False),
        (failed(PLAIN, "A: a"), failed(PLAIN, "B: b"), 1, False),
        (diverged(PLAIN, 3), diverged(PLAIN, 3), 1, False),
        (diverged(PLAIN, 3), diverged(PLAIN, 4), 1, True),
    ],
)
def test_the_last_that_did_not_fail_counts(
    first: Record, second: Record, used: int, conflict: bool
) -> None:
    got = merged([first], [second])
    assert got.records == ((first, second)[used],)
    assert bool(got.conflicts) is conflict


def test_a_conflict_says_what_where_and_in_what_the_environments_differ() -> None:
    first = replace(finished(PLAIN, 0.5), environment={"torch": "2.10", "platform": "x"})
    second = replace(finished(PLAIN, 0.25), environment={"torch": "2.13", "platform": "x"})
    assert str(merged([first], [second]).conflicts[0]) == (
        "batch_norm, iid, seed 0: accuracy 0.5 in 0.jsonl, accuracy 0.25 in 1.jsonl, which is "
        "used; the environments differ in torch."
    )
    third = diverged(PLAIN)
    assert str(merged([finished(PLAIN, 0.5)], [third]).conflicts[0]).endswith(
        "diverged at step 7 in 1.jsonl, which is used; the environments are the same."
    )


@pytest.mark.parametrize(
    "change",
    [
        {"task": "other"},
        {"model": "other"},
        {"steps": 7},
        {"batch_size": 64},
        {"group_size": 8},
        {"ranks": 2},
        {"recipe": 1},
        {"source": "ab"},
    ],
    ids=str,
)
def test_settings_that_differ_are_comparisons_of_their_own(change: dict) -> None:
    other = replace(PLAIN, seed=1, **change)
    got = groups([finished(PLAIN, 0.5), finished(other, 0.5)])
    assert sorted(len(one.wanted) for one in got) == [1, 1]


def test_one_comparison_has_batch_norm_and_iid_first_and_the_search_with_it() -> None:
    runs = wanted("group_norm batch_renorm batch_norm", "clustered iid", seeds=1)
    search = tried(PLAIN, 0.3, 0.5)
    (group,) = groups([search, *(finished(one, 0.5) for one in runs)])
    assert [(one.condition, one.normalizer) for one in group.wanted] == [
        ("iid", "batch_norm"),
        ("iid", "batch_renorm"),
        ("iid", "group_norm"),
        ("clustered", "batch_norm"),
        ("clustered", "batch_renorm"),
        ("clustered", "group_norm"),
    ]
    assert group.records[-1] == search
    assert group.title == "digits, convnet, 100 steps, batches of 32, groups of 4, lr 0.1"


def test_ranks_are_named_where_there_are_several() -> None:
    (group,) = groups([finished(replace(PLAIN, ranks=2), 0.5)])
    assert group.title.endswith("groups of 4, 2 ranks, lr 0.1")


def test_a_rate_for_each_normalizer_is_one_comparison() -> None:
    ours = replace(PLAIN, normalizer="batch_renorm", lr=0.3)
    (group,) = groups([finished(PLAIN, 0.5), finished(ours, 0.5)])
    assert len(group.wanted) == 2
    assert "lr" not in group.title


def test_two_rates_of_one_normalizer_are_set_apart() -> None:
    runs = [replace(PLAIN, lr=lr, seed=seed) for lr in (0.3, 0.1) for seed in (0, 1)]
    got = groups([finished(one, 0.5) for one in runs])
    assert [[one.lr for one in group.wanted] for group in got] == [[0.1, 0.1], [0.3, 0.3]]


def test_the_rates_that_a_search_chose_make_one_comparison() -> None:
    ours = replace(PLAIN, normalizer="batch_renorm")
    search = [
        tried(PLAIN, 0.1, 0.9),
        tried(PLAIN, 0.3, 0.8),
        tried(ours, 0.1, 0.8),
        tried(ours, 0.3, 0.9),
        tried(ours, 0.9, None),
    ]
    runs = [replace(one, lr=lr) for one in (PLAIN, ours) for lr in (0.1, 0.3)]
    got = groups([*search, *(finished(one, 0.5) for one in runs)])
    assert [[(one.normalizer, one.lr) for one in group.wanted] for group in got] == [
        [("batch_norm", 0.1), ("batch_renorm", 0.3)],
        [("batch_renorm", 0.1)],
        [("batch_norm", 0.3)],
    ]


def test_a_search_alone_is_no_comparison() -> None:
    assert groups([tried(PLAIN, 0.1, 0.9)]) == ()
