"""Records as one flat table, a row a run, for a spreadsheet or a data frame."""

import csv
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from renorm.errors import RecordError
from renorm.report.records import Record, Specification
from renorm.report.wording import last_line

SPECIFICATION = tuple(entry.name for entry in fields(Specification))
OUTCOME = (
    "metric",
    "percent",
    "score",
    "train_mode_score",
    "eval_mode_score",
    "gap",
    "loss",
    "diverged_at",
    "error",
    "step_seconds",
    "cpu_seconds",
)


def row(record: Record) -> dict[str, object]:
    """One run without what has a length: no curves, of a traceback the last line."""
    outcome = {name: getattr(record, name) for name in OUTCOME}
    if record.error is not None:
        outcome["error"] = last_line(record.error)
    environment = {f"environment.{name}": value for name, value in record.environment.items()}
    wanted = {name: getattr(record.specification, name) for name in SPECIFICATION}
    return {"key": record.specification.key, **wanted, **outcome, **environment}


def write(path: Path, records: Iterable[Record]) -> None:
    """Write a CSV file with a heading; what a run does not have is an empty field.

    Scores are as they were recorded: fractions where ``percent`` is True.

    Raises:
        RecordError: the file cannot be written.
    """
    rows = [row(record) for record in records]
    names = dict.fromkeys(("key", *SPECIFICATION, *OUTCOME))
    for one in rows:
        names.update(dict.fromkeys(one))
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(names), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise RecordError(
            f"The CSV file {path} cannot be written: {error.strerror}. Give another file, in a "
            "folder that is there."
        ) from error
