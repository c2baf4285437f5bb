"""Reading back the runs that a script has recorded, one line a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from renorm.errors import ArgumentError

K = TypeVar("K")
V = TypeVar("V")


def read(path: Path, schema: int, parse: Callable[[dict[str, Any]], tuple[K, V]]) -> dict[K, V]:
    """What the lines of a file hold, the last of each run; no file is no runs.

    Args:
        path: of the file.
        schema: of its records.
        parse: a record as the run, and what is known of it.

    Raises:
        ArgumentError: a line is no record of this script.
    """
    found = {}
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if record["schema"] != schema:
                raise ValueError(f"its schema is not {schema}")
            run, figures = parse(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"{path}, line {number} is no record of a run: {error!r}. Remove the line, or give "
                "another file."
            ) from error
        found[run] = figures
    return found
