"""Names that a user gives, looked up with help for the misspelt."""

import ast
import difflib
import math
from collections.abc import Collection, Iterable, Mapping
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
            raise ArgumentError(
                f"There is no {kind} {name!r}.{_nearest(name, table)} There are {', '.join(table)}."
            )
    return found


def check_options(kind: str, name: str, given: Iterable[str], allowed: Collection[str]) -> None:
    """Refuse options that something does not have.

    Raises:
        ArgumentError: with those it has.
    """
    unknown = [option for option in given if option not in allowed]
    if unknown:
        raise ArgumentError(
            f"The {kind} {name!r} has no option {unknown[0]!r}.{_nearest(unknown[0], allowed)} "
            f"It has {', '.join(allowed) or 'none'}."
        )


def _nearest(name: str, table: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(table), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def parsed(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """A name alone, and its options, which are plain values.

    Args:
        kind: what the name is of, for the message.
        text: such as ``group_norm(groups=8)``, or a name without options.

    Raises:
        ArgumentError: the text is no such name.

    >>> parsed("net", "plain( depth = 20 )"), parsed("net", "vgg")
    (('plain', {'depth': 20}), ('vgg', {}))
    """
    base, bracket, _ = text.partition("(")
    if not bracket:
        return text, {}
    call_text = f"f({text.strip().partition('(')[2]}"
    try:
        call = ast.parse(call_text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or ast.unparse(call.func) != "f":
            raise ValueError("options have names")
        options = {str(one.arg): _value(one.value) for one in call.keywords if one.arg}
        if len(options) < len(call.keywords):
            raise ValueError("options have names")
    except (SyntaxError, ValueError) as error:
        raise ArgumentError(
            f"Options of a {kind} are plain values by name, such as {base}(size=8), got {text!r} "
            f"({error})."
        ) from error
    return base.strip(), options


def with_options(base: str, options: Mapping[str, Any]) -> str:
    """The one way to write a name with its options.

    >>> with_options("group_norm", {"groups": 8}), with_options("vgg", {})
    ('group_norm(groups=8)', 'vgg')
    """
    shown = ", ".join(f"{option}={value!r}" for option, value in sorted(options.items()))
    return f"{base}({shown})" if options else base


def _value(node: ast.expr) -> Any:
    """A plain value; infinity is one, as ``repr`` writes it."""
    infinite = isinstance(node, ast.Name) and node.id == "inf"
    return math.inf if infinite else ast.literal_eval(node)
