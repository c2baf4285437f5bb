"""Surveys as JSON lines: a head with the schema version, then a line a record; without torch."""

import dataclasses
import json
import math
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from renorm.errors import RecordError
from renorm.measure import records
from renorm.measure.records import Record, Survey

SCHEMA = 1

_KINDS: dict[str, type[Record]] = {
    cls.__name__: cls
    for cls in vars(records).values()
    if isinstance(cls, type) and issubclass(cls, Record) and cls is not Record
}
# JSON has no infinity, and the limits of a layer may be infinite
_INFINITE = {"inf": math.inf, "-inf": -math.inf}


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
    if kind not in _KINDS:
        raise RecordError(f"its kind is {kind!r}; there are {', '.join(sorted(_KINDS))}")
    return _built(_KINDS[kind], rest)


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
    return _built(Survey, {**head, "records": tuple(map(from_dict, contents[1:]))})


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
    except json.JSONDecodeError as error:
        raise RecordError(f"line {number} is not JSON ({error})") from error


def _checked(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise RecordError(f"its schema is not {SCHEMA}, the one this version reads and writes")
    return {key: value for key, value in content.items() if key != "schema"}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _built(cls: Any, content: dict[str, Any]) -> Any:
    names = {entry.name for entry in dataclasses.fields(cls)}
    if content.keys() != names:
        wrong = ", ".join(sorted(content.keys() ^ names))
        raise RecordError(f"{cls.__name__} has missing or unknown entries: {wrong}")
    hints = get_type_hints(cls)
    values = {name: _read(value, hints[name]) for name, value in content.items()}
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise RecordError(f"{name} of {cls.__name__} is {content[name]!r}, not {hints[name]}")
    return cls(**values)


def _read(value: Any, hint: Any) -> Any:
    parts = get_args(hint) or (hint,)
    if isinstance(value, list):
        inner = _of_elements(hint)
        return tuple(_read(one, inner) for one in value)
    if isinstance(value, str) and float in parts and value in _INFINITE:
        return _INFINITE[value]
    return value


def _of_elements(hint: Any) -> Any:
    """The hint of what is in a tuple, or in the one that a union allows."""
    if get_origin(hint) in (Union, types.UnionType):
        return next((_of_elements(p) for p in get_args(hint) if get_origin(p) is tuple), None)
    return get_args(hint)[0] if get_args(hint) else None


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple and parts[-1] is Ellipsis:
        return isinstance(value, tuple) and all(_fits(part, parts[0]) for part in value)
    if origin is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
        )
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
