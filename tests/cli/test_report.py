import csv
from dataclasses import replace
from pathlib import Path

import pytest

from renorm import cli
from renorm.report.records import Record, to_line
from report.constructed import PLAIN, failed, finished, wanted
from report.whole import grid, tried


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def store(name: str, records: list[Record]) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(to_line(one) + "\n" for one in records))


def test_stores_alone_make_tables_and_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    records = grid(2)
    store("a/one.jsonl", records[:10])
    store("b/two.jsonl", records[10:])
    assert cli.main(["report", "a", "b/two.jsonl", "--out", "my page.html"]) == cli.DONE
    captured = capsys.readouterr()
    out = " ".join(captured.out.split())
    assert "digits, convnet, 100 steps, batches of 32, groups of 4, lr 0.1" in out
    assert "iid: batches of 32 at random, one group" in out
    assert "Batch renorm beats batch norm by" in out
    assert "Page: my page.html" in captured.err
    text = Path("my page.html").read_text()
    assert "renorm report a b/two.jsonl --out &#39;my page.html&#39;" in text
    assert "batches of 32 at random, one group" in text


def test_without_a_place_this_folder_is_searched(capsys: pytest.CaptureFixture[str]) -> None:
    store("deep/er/one.jsonl", [finished(PLAIN, 0.5)])
    Path("bench.jsonl").write_text('{"schema": 2, "suite": "nchw"}\n')
    assert cli.main(["report"]) == 0
    assert Path("report.html").exists()
    captured = capsys.readouterr()
    assert "Left aside, as it holds no records of renorm compare: bench.jsonl" in captured.err


def test_each_comparison_has_a_table_and_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    longer = [replace(one, steps=200) for one in wanted("batch_norm")]
    store("one.jsonl", [finished(one, 0.5) for one in (*wanted("batch_norm"), *longer)])
    assert cli.main(["report", ".", "--out", "page.html"]) == 0
    assert sorted(path.name for path in Path().glob("*.html")) == ["page-1.html", "page-2.html"]
    captured = capsys.readouterr()
    assert captured.out.count("Only batch norm was run") == 2
    assert "Page: page-2.html (digits, convnet, 200 steps, " in captured.err


def test_failed_runs_are_shown_and_the_exit_code_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    store("one.jsonl", [failed(PLAIN, "OSError: disk on fire")])
    assert cli.main(["report", "."]) == cli.SOME_FAILED
    assert "failed: batch_norm, iid, seed 0: OSError: disk on fire" in capsys.readouterr().out


def test_conflicts_and_torn_lines_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    store("one.jsonl", [finished(PLAIN, 0.5)])
    store("two.jsonl", [finished(PLAIN, 0.25)])
    with Path("two.jsonl").open("a") as file:
        file.write('{"schema": 2, "key"')
    assert cli.main(["report", "one.jsonl", "two.jsonl"]) == 0
    captured = capsys.readouterr()
    assert "Two results of one run: batch_norm, iid, seed 0: accuracy 0.5 in one.jsonl" in (
        captured.err
    )
    assert "two.jsonl, line 2 was cut off" in captured.err
    assert "25.0" in captured.out


def test_csv_and_scalars(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard.summary", reason="tensorboard is not installed")
    store("one.jsonl", [*grid(1), tried(PLAIN, 0.1, 0.5)])
    assert cli.main(["report", ".", "--csv", "runs.csv", "--tensorboard", "log"]) == 0
    with Path("runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert [row["split"] for row in rows].count("validation") == 1
    assert "Scalars of 10 runs: log" in capsys.readouterr().err
    assert len(list(Path("log").rglob("events*"))) == 10


def test_a_search_alone_is_nothing_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    store("one.jsonl", [tried(PLAIN, 0.1, 0.5)])
    assert cli.main(["report", "."]) == 0
    assert "nothing to show" in capsys.readouterr().err
    assert list(Path().glob("*.html")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("nowhere", "There is no file or folder nowhere"),
        (".", "No results file of renorm compare (*.jsonl) in ."),
        ("notes.txt", "notes.txt, line 1 is no record of renorm"),
        ("good/one.jsonl --out no/page.html", "no/page.html cannot be written"),
        ("good/one.jsonl --csv no/runs.csv", "no/runs.csv cannot be written"),
        ("good/one.jsonl --tensorboard notes.txt", "notes.txt cannot be written"),
        ("good/one.jsonl --colour red", "--colour"),
    ],
)
def test_a_mistake_is_explained_with_exit_code_2(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--tensorboard" in options:
        pytest.importorskip("tensorboard.summary", reason="tensorboard is not installed")
    Path("notes.txt").write_text("my notes\n")
    if options != ".":
        store("good/one.jsonl", [finished(PLAIN, 0.5)])
    assert cli.main(["report", *options.split()]) == cli.USAGE
    assert message in capsys.readouterr().err


def test_help_explains_merging(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "the last that did not fail counts" in text
    assert "[default: report.html]" in text
