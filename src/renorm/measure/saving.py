"""Surveys as JSON lines: a head with the schema version, then a line a record; without torch."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from renorm.decoding import decode
from renorm.errors import RecordError
from renorm.measure import records
from renorm.measure.records import Record, Survey

SCHEMA = 1

_KINDS: dict[str, type[Record]] = {
    cls.__name__: cls
    for cls in vars(records).values()
    if isinstance(cls, type) and issubclass(cls, Record) and cls is not Record
}


def to_dict(record: Record) -> dict[str, Any]:
    """A record as JSON's types, with its kind and the schema version."""
    content = {"schema": SCHEMA, "kind": type(record).__name__, **dataclasses.asdict(record)}
    return {key: _plain(value) for key, value in content.items()}


def from_dict(content: Any) -> Record:
    """The record that ``to_dict`` gave.

    Raises:
        RecordError: no object, another schema, an unknown kind, or an entry that is missing,
            unknown or of the wrong type.
    """
    rest = _checked(content)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise RecordError(f"its kind is {kind!r}; there are {', '.join(sorted(_KINDS))}")
    return decode(_KINDS[kind], rest, infinite=True)


def to_lines(survey: Survey) -> Iterator[str]:
    """The survey as lines of JSON, without newlines; the first is its head."""
    head = {f.name: getattr(survey, f.name) for f in dataclasses.fields(Survey)[:-1]}
    yield json.dumps({"schema": SCHEMA, "kind": "Survey", **head}, allow_nan=False)
    for record in survey.records:
        yield json.dumps(to_dict(record), allow_nan=False)


def from_lines(lines: Iterable[str]) -> Survey:
    """The survey that ``to_lines`` gave.

    Raises:
        RecordError: a line that is not JSON, no head, or what ``from_dict`` raises for.
    """
    contents = [_parsed(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not contents or not isinstance(contents[0], dict) or contents[0].get("kind") != "Survey":
        raise RecordError("its first line is not the head of a survey, which has its kind, Survey")
    head = _checked(contents[0])
    del head["kind"]
    survey = decode(Survey, {**head, "records": []})
    return dataclasses.replace(survey, records=tuple(map(from_dict, contents[1:])))


def save(survey: Survey, path: str | Path) -> None:
    """Write a survey to a file."""
    Path(path).write_text("".join(f"{line}\n" for line in to_lines(survey)), encoding="utf-8")


def load(path: str | Path) -> Survey:
    """Read a survey from a file.

    Raises:
        RecordError: it does not hold a survey of this schema.
    """
    try:
        return from_lines(Path(path).read_text(encoding="utf-8").splitlines())
    except RecordError as error:
        raise RecordError(f"{path} cannot be read as a survey: {error}.") from error


def _parsed(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # also of thousands of digits or brackets
        raise RecordError(f"line {number} is not JSON ({error})") from error


def _checked(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RecordError(f"its schema is not {SCHEMA}, the one this version reads and writes")
    return {key: value for key, value in content.items() if key != "schema"}


def _plain(value: Any) -> Any:
    """As JSON has it, which knows no infinity; the limits of a layer may be infinite."""
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value
