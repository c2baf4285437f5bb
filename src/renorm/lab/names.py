"""Names that a user gives, looked up with help for the misspelt."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from renorm.errors import ArgumentError


def known(kind: str, names: Iterable[str], table: Mapping[str, Any]) -> tuple[str, ...]:
    """The names as the table has them; hyphens count as underscores, repetitions once.

    Args:
        kind: what the names are, for the message.
        names: at least one.
        table: its keys are what is allowed.

    Raises:
        ArgumentError: no name, or one that is not in the table, with the nearest.

    >>> known("letter", ["alpha-beta"], {"alpha_beta": 1})
    ('alpha_beta',)
    """
    found = tuple(dict.fromkeys(name.strip().replace("-", "_") for name in names))
    if not found:
        raise ArgumentError(f"At least one {kind} is needed; there are {', '.join(table)}.")
    for name in found:
        if name not in table:
            near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ArgumentError(f"There is no {kind} {name!r}.{hint} There are {', '.join(table)}.")
    return found
