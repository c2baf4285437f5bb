import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from renorm.errors import MissingExtraError, RecordError
from renorm.report import page
from renorm.report.comparison import compare
from renorm.report.records import Record
from report.constructed import PLAIN, diverged, failed, finished, wanted
from report.reading import Read
from report.whole import HOSTILE, grid, plain, tried

COMMAND = "renorm report a.jsonl --out 'my page.html'"


def rendered(records: list[Record], **about: str) -> str:
    wanted = [one.specification for one in records if one.specification.split == "test"]
    return page.render(compare(wanted, records), records, about, COMMAND)


def mixed() -> list[Record]:
    records = grid(3)
    records[0] = failed(records[0].specification, "ValueError: <b>no</b>")
    records[5] = diverged(records[5].specification)
    return records


def test_conclusion_first_then_the_figures_runs_environment_and_command() -> None:
    text = Read(rendered(mixed(), iid="at random")).text
    comparison = compare([one.specification for one in mixed()], mixed())
    parts = (
        *comparison.sentences,
        "iid : at random",
        "ValueError: <b>no</b>",
        "diverged at step 7",
        "Environment of 25 runs",
        "2.13.0",
        "Environment of 2 runs",
    )
    for part in parts:
        assert part in text, part
    places = [text.index(part) for part in (comparison.sentences[0], "iid : at random", COMMAND)]
    assert places == sorted(places)


def test_it_is_well_formed_one_file_and_small() -> None:
    text = rendered(mixed())
    got = Read(text)
    assert got.open == []
    for tag, attributes in got.attributes:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "data:").startswith("data:"), tag
    assert "url(" not in text.partition("<style>")[2].partition("</style>")[0]
    assert "@import" not in text.partition("<style>")[2].partition("</style>")[0]
    assert len(text.encode()) < 6_000_000


def test_only_its_own_scripts_may_run_and_nothing_may_be_fetched() -> None:
    got = Read(rendered(mixed()))
    policy = next(
        attributes["content"]
        for tag, attributes in got.attributes
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy
    assert policy.startswith("default-src 'none'; ")
    assert policy.count("'sha256-") == 2 == got.elements["script"] - 1
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]


def test_everything_from_records_is_escaped() -> None:
    hostile = replace(
        PLAIN, task=HOSTILE, model=HOSTILE, normalizer=HOSTILE, condition=HOSTILE, source=HOSTILE
    )
    records = [
        replace(
            finished(replace(hostile, seed=0), 0.5),
            metric=HOSTILE,
            environment={HOSTILE: HOSTILE},
            step_seconds=1.0,
        ),
        replace(failed(replace(hostile, seed=1)), error=HOSTILE),
        tried(hostile, 0.1, 0.5),
    ]
    comparison = compare([one.specification for one in records[:2]], records)
    text = page.render(comparison, records, {HOSTILE: HOSTILE}, HOSTILE)
    got, harmless = Read(text), Read(rendered([finished(PLAIN, 0.5)]))
    assert got.elements["script"] == harmless.elements["script"]
    assert got.elements["img"] == 0
    assert got.open == []
    assert "alert(1)" in got.text
    figures = json.loads(got.scripts[0])["figures"]
    assert "<img" not in json.dumps(figures)


def test_the_same_records_give_the_same_page_in_any_order() -> None:
    records = mixed()
    comparison = compare([one.specification for one in records], records)
    others = [replace(PLAIN, condition="clustered"), replace(PLAIN, normalizer="batch_renorm")]
    records += [tried(one, lr, 0.5) for one in (PLAIN, *others) for lr in (0.3, 0.1)]
    pages = {
        page.render(comparison, ones, {}, COMMAND) for ones in (records, records[::-1], records)
    }
    assert len(pages) == 1


def test_tables_have_captions_headings_and_scopes_and_charts_say_what_they_show() -> None:
    got = Read(rendered([*mixed(), tried(PLAIN, 0.1, 0.5)]))
    assert got.elements["caption"] == got.elements["table"] == 3
    assert got.elements["h1"] == 1
    assert all("scope" in attributes for tag, attributes in got.attributes if tag == "th")
    charts = [attributes for _, attributes in got.attributes if "data-figure" in attributes]
    assert len(charts) == 12
    assert all(one["role"] == "img" and one["aria-label"] for one in charts)
    assert set(json.loads(got.scripts[0])["figures"]) == {one["data-figure"] for one in charts}
    identifiers = [one["id"] for _, one in got.attributes if "id" in one]
    assert len(identifiers) == len(set(identifiers))
    labels = [one["aria-labelledby"] for _, one in got.attributes if "aria-labelledby" in one]
    assert set(labels) <= set(identifiers)


def test_a_search_is_shown_with_what_was_chosen_and_what_was_compared() -> None:
    runs = wanted("batch_norm batch_renorm", seeds=1)
    search = [tried(runs[0], 0.1, 0.5), tried(runs[0], 0.3, 0.6), tried(runs[1], 0.1, None)]
    stranger = tried(replace(runs[0], steps=7), 0.1, 0.123)
    text = Read(rendered([*(finished(one, 0.5) for one in runs), *search, stranger])).text
    assert "batch norm iid 0.3 (at the edge) 0.1 0.1: 50.0; 0.3: 60.0" in text
    assert "batch renorm iid none 0.1 0.1: diverged or failed" in text
    assert "12.3" not in text
    assert "5 runs, one by one" in text


def test_seeds_needed_are_named_where_the_difference_is_not_clear() -> None:
    runs = wanted("batch_norm batch_renorm group_norm none", seeds=2)
    scores = {
        "batch_norm": (0.50, 0.50),
        "batch_renorm": (0.51, 0.53),
        "group_norm": (0.52, 0.52),
        "none": (0.1, 0.12),
    }
    text = Read(rendered([finished(one, scores[one.normalizer][one.seed]) for one in runs])).text
    assert "batch norm 50.0 ± 0.0 +2.0 ± 12.7 about 5 " in text
    assert "group norm 52.0 ± 0.0 +0.0 ± 12.7 over 1,000 " in text
    assert "none 11.0 ± 12.7 +41.0 ± 0.0 11.0" in text


def test_another_metric_and_a_failed_run_of_another_kind() -> None:
    runs = wanted("batch_norm", seeds=2)
    text = Read(rendered([plain(runs[0], -200.0), failed(runs[1])])).text
    assert "return runs" in text
    assert "Every run: scores in return" in text
    assert "-200.0" in text
    assert "missing" not in text


def test_without_a_score_there_is_a_page_without_charts() -> None:
    got = Read(rendered([failed(one) for one in wanted("batch_norm batch_renorm", seeds=1)]))
    assert "Nothing to conclude" in got.text
    assert not any("data-figure" in attributes for _, attributes in got.attributes)


def test_missing_runs_are_listed() -> None:
    runs = wanted("batch_norm", seeds=2)
    comparison = compare(runs, [finished(runs[0], 0.5)])
    text = Read(page.render(comparison, [finished(runs[0], 0.5)], {}, COMMAND)).text
    assert "batch norm iid 1 0.1 - - - - missing" in text


def test_it_is_written_to_a_file(tmp_path: Path) -> None:
    records = [finished(PLAIN, 0.5)]
    comparison = compare([PLAIN], records)
    page.write(tmp_path / "a.html", comparison, records, {}, COMMAND)
    written = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert written == page.render(comparison, records, {}, COMMAND)
    with pytest.raises(RecordError, match=r"a.html cannot be written: No such file"):
        page.write(tmp_path / "no" / "a.html", comparison, records, {}, COMMAND)


@pytest.mark.parametrize(("module", "name"), [("jinja2", "jinja2"), ("plotly.offline", "plotly")])
def test_without_its_libraries_the_command_to_install_them_is_named(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf'{name}, which is.*pip install "renorm\[lab\]"'):
        rendered([finished(PLAIN, 0.5)])
