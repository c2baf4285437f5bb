import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renorm.errors import RecordError
from renorm.report.records import Record, Specification, from_line, to_line
from report.constructed import PLAIN, diverged, failed, finished
from report.whole import plain, whole

FULL = replace(finished(PLAIN, 0.5), cpu_seconds=1.5, environment={"torch": "2", "commit": None})


def altered(**changes: object) -> str:
    return json.dumps({**json.loads(to_line(FULL)), **changes})


WHOLE = whole(replace(PLAIN, normalizer="batch_renorm"), 0.9)


@pytest.mark.parametrize(
    "record", [FULL, WHOLE, diverged(PLAIN), failed(PLAIN), plain(PLAIN, -3.0)]
)
def test_a_line_holds_the_whole_record(record: Record) -> None:
    back = from_line(to_line(record))
    assert back == record
    assert (back.cpu_seconds, back.environment) == (record.cpu_seconds, record.environment)
    assert "\n" not in to_line(record)


@given(
    st.builds(
        Specification,
        st.text(),
        st.text(),
        st.text(),
        st.text(),
        st.integers(0, 2**31),
        st.integers(1, 10**6),
        st.floats(1e-6, 10),
        st.integers(1, 512),
        st.integers(1, 512),
    )
)
def test_any_specification_survives_a_line_with_its_key(specification: Specification) -> None:
    back = from_line(to_line(finished(specification, 0.25))).specification
    assert back == specification
    assert hash(back) == hash(specification)
    assert back.key == specification.key


def test_the_key_is_fixed_and_every_field_changes_it() -> None:
    assert PLAIN.key == "a0befe1f39a4e4b9"
    for entry in fields(PLAIN):
        value = getattr(PLAIN, entry.name)
        other = replace(PLAIN, **{entry.name: value + ("x" if isinstance(value, str) else 1)})
        assert other.key != PLAIN.key, entry.name


def test_time_and_place_are_no_part_of_equality() -> None:
    assert replace(FULL, cpu_seconds=9.0, environment={}) == FULL


def test_gap_is_train_mode_less_eval_mode() -> None:
    assert finished(PLAIN, 0.25, gap=0.5).gap == 0.5
    assert diverged(PLAIN).gap is None


def without_score() -> str:
    content = json.loads(to_line(FULL))
    del content["score"]
    return json.dumps(content)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "not JSON"),
        ("hello", "not JSON"),
        ("[1]", 'not an object with a "schema"'),
        ('{"a": 1}', 'not an object with a "schema"'),
        (altered(schema=1), "schema is not 3"),
        ('{"schema": 1, "kind": "Survey"}', "renorm doctor --again"),
        (altered(key="0"), "key '0' is not that of its specification"),
        (
            altered(specification=3),
            "specification of its record is 3, which is not of type",
        ),
        (altered(extra=1), "missing or unknown entries: extra"),
        (without_score(), "missing or unknown entries: score"),
        (altered(score="high"), "score of its record is 'high'"),
        (altered(score=True), "score of its record is True"),
        (altered(curve=[[1, 0.5, 2]]), "curve of its record is"),
        (altered(curve=3), "curve of its record is 3"),
        (altered(corrections=[1]), "corrections of its record is [1]"),
        (altered(corrections=[{"step": 1}]), "its corrections has missing or unknown entries"),
        (altered(percent=1), "percent of its record is 1"),
        (altered(error=["a"]), "error of its record is"),
        (altered(environment={"torch": 2}), "environment of its record is"),
        (altered(diverged_at=1.5), "diverged_at of its record is 1.5"),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(line: str, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        from_line(line)
    assert message in str(caught.value)
