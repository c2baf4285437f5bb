"""Diagnoses as files, and what they say when they are read again."""

import json
import math
from pathlib import Path

import pytest
from doctored import finding, loss, model, rows, surveyed

import renorm
from renorm.doctor import Diagnosis, diagnosing, load, saving
from renorm.environment import describe
from renorm.errors import ArgumentError, RecordError
from renorm.findings import Figure
from renorm.measure.records import Survey


def judge(survey: Survey) -> tuple:
    """Finds something that depends on the records."""
    return (finding("error", title=f"{len(survey.records)} records"), finding("note"))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (diagnosing, saving):
        monkeypatch.setattr(module, "judge", judge)


def test_a_diagnosis_is_read_as_it_was(judged: None, tmp_path: Path) -> None:
    found = renorm.diagnose(model(), rows(), loss)
    found.to_json(tmp_path / "it.jsonl")
    assert load(tmp_path / "it.jsonl") == Diagnosis.load(tmp_path / "it.jsonl") == found
    assert found.environment == describe()
    assert found.worst == "error"


def test_every_line_names_its_kind(tmp_path: Path) -> None:
    figure = Figure("1", "shift", math.inf, math.nan)
    Diagnosis(surveyed(), (finding(evidence=(figure,)),)).to_json(tmp_path / "it.jsonl")
    head, one, last = map(json.loads, (tmp_path / "it.jsonl").read_text().splitlines())
    assert [line["kind"] for line in (head, one, last)] == ["Survey", "Finding", "Environment"]
    assert {line["schema"] for line in (head, one, last)} == {1}
    assert (one["id"], one["severity"], one["layers"]) == (
        "stale_statistics",
        "warning",
        ["1", "5"],
    )
    assert (one["evidence"][0]["value"], one["evidence"][0]["threshold"]) == ("inf", None)
    assert last["torch"] == describe()["torch"]


def test_records_are_judged_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Diagnosis(surveyed(), (finding(title="of an old version"),)).to_json(tmp_path / "it.jsonl")
    monkeypatch.setattr(saving, "judge", lambda survey: (finding("note", title="of this one"),))
    again = load(tmp_path / "it.jsonl")
    assert [one.title for one in again.findings] == ["of this one"]
    assert again.worst == "note"


def test_where_it_was_measured_stays(judged: None, tmp_path: Path) -> None:
    Diagnosis(surveyed(), (), {"torch": "0.4"}).to_json(tmp_path / "it.jsonl")
    assert load(tmp_path / "it.jsonl").environment == {"torch": "0.4"}


def test_a_survey_alone_is_read(judged: None, tmp_path: Path) -> None:
    renorm.measure.saving.save(surveyed(), tmp_path / "it.jsonl")
    assert load(tmp_path / "it.jsonl").survey == surveyed()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a diagnosis: .*head of a survey"),
        ("my notes\n", "line 1 is not JSON"),
        ('{"schema": 9, "kind": "Survey"}\n', "its schema is not 1"),
        ("[1]\n", "head of a survey"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("9" * 5_000, "line 1 is not JSON"),
    ],
)
def test_another_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "it.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("LayerFacts", {"kind": ["LayerFacts"]}),
        ("LayerFacts", {"eps": 10**400}),
        ("LayerFacts", {"updates": 10**400}),
        ("LayerFacts", {"momentum": 1e308}),
        ("LayerFacts", {"microbatch": 0}),
        ("CrossExampleInfluence", {"influence": 1e308}),
    ],
)
def test_figures_that_cannot_be_are_refused(
    kind: str, changes: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "it.jsonl"
    renorm.diagnose(model(), rows(), loss).to_json(path)
    contents = [json.loads(line) for line in path.read_text().splitlines()]
    for content in contents:
        if content["kind"] == kind:
            content |= changes
    path.write_text("\n".join(map(json.dumps, contents)))
    with pytest.raises(RecordError, match="cannot be read as a diagnosis"):
        load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"none\.jsonl cannot be read .*renorm doctor --json"):
        load(tmp_path / "none.jsonl")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    found = Diagnosis(surveyed(), ())
    with pytest.raises(ArgumentError, match=r"no/it\.jsonl cannot be written: No such file"):
        found.to_json(tmp_path / "no" / "it.jsonl")


def test_a_healthy_one_has_no_worst() -> None:
    assert Diagnosis(surveyed(), ()).worst is None
