"""Diagnoses as JSON lines: those of the survey, then the findings, then the environment."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from renorm.errors import ArgumentError, RecordError
from renorm.findings import Finding, judge
from renorm.measure.records import Survey
from renorm.measure.saving import SCHEMA, from_lines, to_lines

Environment = Mapping[str, str | None]


def save(
    path: str | Path, survey: Survey, findings: Iterable[Finding], environment: Environment
) -> None:
    """Write a diagnosis to a file.

    Raises:
        ArgumentError: the file cannot be written.
    """
    made = [_line("Finding", dataclasses.asdict(finding)) for finding in findings]
    lines = [*to_lines(survey), *made, _line("Environment", dict(environment))]
    with writing(path):
        Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read(path: str | Path) -> tuple[Survey, tuple[Finding, ...], Environment]:
    """What is in a file: the survey, what it says now, and what it was measured with.

    The findings in the file are for other readers: they are made again of the records. A survey
    that was saved alone is read as well.

    Raises:
        RecordError: the file is not there, or holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(
            f"{path} cannot be read ({error}). Give a file that renorm doctor --json or "
            "Diagnosis.to_json wrote."
        ) from error
    environment: Environment = {}
    kept = []
    for line in filter(str.strip, text.splitlines()):
        content = _parsed(line)
        kind = content.pop("kind", None)
        if kind == "Environment" and content.pop("schema", None) == SCHEMA:
            environment = content
        elif kind != "Finding":
            kept.append(line)
    try:
        survey = from_lines(kept)
        findings = judge(survey)
    except (RecordError, ArithmeticError, ValueError, LookupError) as error:  # no such figures
        raise RecordError(
            f"{path} cannot be read as a diagnosis: {error}. Give a file that renorm doctor --json "
            "or Diagnosis.to_json of this version wrote."
        ) from error
    return survey, findings, environment


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Say which file it is that cannot be written.

    Raises:
        ArgumentError: instead of an error of the file system.
    """
    try:
        yield
    except OSError as error:
        raise ArgumentError(
            f"{path} cannot be written: {error.strerror or error}. Give another file, in a folder "
            "that is there."
        ) from error


def _parsed(line: str) -> dict[str, Any]:
    """An object as it stands in the file; empty for what is none, which the survey refuses."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):  # also of thousands of digits or brackets
        return {}
    return content if isinstance(content, dict) else {}


def _line(kind: str, content: dict[str, Any]) -> str:
    return json.dumps({"schema": SCHEMA, "kind": kind, **_plain(content)}, allow_nan=False)


def _plain(value: Any) -> Any:
    """With JSON's types: it has no infinity, and no NaN."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
