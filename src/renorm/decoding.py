"""JSON's types as the dataclasses they were, each entry checked against its annotation."""

import math
import sys
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from renorm.errors import RecordError

Read = Callable[[Any], Any]
# JSON has no infinity; these are for what may be infinite
INFINITE = {"inf": math.inf, "-inf": -math.inf}
_WRONG = object()  # what is read where the type is not the annotation's


def decode(cls: Any, content: Any, *, infinite: bool = False) -> Any:
    """An instance of a dataclass from what JSON has of it.

    Lists become the tuples they were, objects the dataclasses. Annotations may be ``bool``,
    ``int``, ``float``, ``str`` and ``None``, dataclasses, and tuples, dicts and unions of all.

    Args:
        cls: the dataclass.
        content: an object with each of its fields, and no other entry.
        infinite: whether ``"inf"`` and ``"-inf"`` stand for floats; NaN never does.

    Raises:
        RecordError: no object, or an entry that is missing, unknown or of the wrong type.

    >>> from renorm.report.records import Corrections
    >>> quantiles = [0.8, 0.9, 1.0, 1.1, 1.2]
    >>> decode(Corrections, {"step": 3, "r_max": 3.0, "d_max": 5.0, "r": quantiles,
    ...     "d": quantiles, "clipped_r": 0.0, "clipped_d": 0.0}).r
    (0.8, 0.9, 1.0, 1.1, 1.2)
    """
    found = _reader(cls, infinite)(content)
    if found is _WRONG:
        raise RecordError(f"it has no {cls.__name__.lower()} object")
    return found


@cache
def _reader(hint: Any, infinite: bool) -> Read:
    origin, parts = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _of_dataclass(hint, infinite)
    if origin in (Union, types.UnionType):
        return _of_any([_reader(part, infinite) for part in parts])
    if origin is tuple and parts[-1] is Ellipsis:
        return _of_sequence(_reader(parts[0], infinite))
    if origin is tuple:
        return _of_tuple([_reader(part, infinite) for part in parts])
    if origin is dict:
        return _of_dict(_reader(parts[1], infinite))
    return _of_float(infinite) if hint is float else _of_plain(hint)


def _of_dataclass(cls: Any, infinite: bool) -> Read:
    hints = get_type_hints(cls)
    readers = {entry.name: _reader(hints[entry.name], infinite) for entry in fields(cls)}
    called = cls.__name__.lower()

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            return _WRONG
        if value.keys() != readers.keys():
            wrong = ", ".join(sorted(value.keys() ^ readers.keys()))
            raise RecordError(f"its {called} has missing or unknown entries: {wrong}")
        found = {name: reader(value[name]) for name, reader in readers.items()}
        for name, entry in found.items():
            if entry is _WRONG:
                hint = hints[name]
                allowed = hint if get_args(hint) else hint.__name__
                raise RecordError(
                    f"{name} of its {called} is {value[name]!r}, which is not of type {allowed}"
                )
        return cls(**found)

    return read


def _of_any(readers: list[Read]) -> Read:
    def read(value: Any) -> Any:
        return next((f for r in readers if (f := r(value)) is not _WRONG), _WRONG)

    return read


def _of_sequence(reader: Read) -> Read:
    def read(value: Any) -> Any:
        if not isinstance(value, list):
            return _WRONG
        found = tuple(map(reader, value))
        return _WRONG if _WRONG in found else found

    return read


def _of_tuple(readers: list[Read]) -> Read:
    def read(value: Any) -> Any:
        if not isinstance(value, list) or len(value) != len(readers):
            return _WRONG
        found = tuple(reader(one) for reader, one in zip(readers, value, strict=True))
        return _WRONG if _WRONG in found else found

    return read


def _of_dict(reader: Read) -> Read:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            return _WRONG
        found = {key: reader(one) for key, one in value.items()}
        return _WRONG if _WRONG in found.values() else found

    return read


def _of_float(infinite: bool) -> Read:
    def read(value: Any) -> Any:
        if infinite and isinstance(value, str):
            return INFINITE.get(value, _WRONG)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if number and abs(value) <= sys.float_info.max else _WRONG  # so not NaN

    return read


def _of_plain(hint: type) -> Read:
    def read(value: Any) -> Any:
        fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
        return value if fits else _WRONG

    return read
