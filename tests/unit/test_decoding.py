import math
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from renorm.decoding import decode
from renorm.errors import RecordError


@dataclass(frozen=True)
class Inner:
    place: int


@dataclass(frozen=True)
class Outer:
    name: str
    sure: bool
    rate: float
    limit: float | None
    inner: Inner
    several: tuple[Inner, ...]
    pair: tuple[int, float]
    versions: dict[str, str | None]


GOOD: dict[str, Any] = {
    "name": "a",
    "sure": True,
    "rate": 1,
    "limit": None,
    "inner": {"place": 1},
    "several": [{"place": 2}, {"place": 3}],
    "pair": [4, 0.5],
    "versions": {"torch": "2", "commit": None},
}


def test_lists_and_objects_become_what_they_were() -> None:
    found = decode(Outer, GOOD)
    assert found.several == (Inner(2), Inner(3))
    assert found.pair == (4, 0.5)
    assert asdict(found) == {**GOOD, "several": ({"place": 2}, {"place": 3}), "pair": (4, 0.5)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 1),
        ("sure", 1),
        ("rate", True),
        ("rate", "1"),
        ("rate", math.nan),
        ("rate", math.inf),
        ("rate", "inf"),
        ("limit", "none"),
        ("inner", [1]),
        ("several", {"place": 2}),
        ("several", [1]),
        ("pair", [1]),
        ("pair", [1.5, 0.5]),
        ("versions", {"torch": 2}),
        ("versions", []),
    ],
)
def test_a_wrong_type_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RecordError, match=rf"{field} of its outer is .*, which is not of type"):
        decode(Outer, {**GOOD, field: value})


@pytest.mark.parametrize("place", [{}, {"place": 1, "other": 2}])
def test_entries_are_neither_missing_nor_unknown_in_any_depth(place: dict[str, int]) -> None:
    with pytest.raises(RecordError, match="its inner has missing or unknown entries"):
        decode(Outer, {**GOOD, "inner": place})


@pytest.mark.parametrize("content", [None, [], "x", 1])
def test_what_is_no_object_is_refused(content: object) -> None:
    with pytest.raises(RecordError, match="it has no outer object"):
        decode(Outer, content)


def test_infinity_has_a_name_where_it_is_allowed() -> None:
    found = decode(Outer, {**GOOD, "rate": "inf", "limit": "-inf"}, infinite=True)
    assert (found.rate, found.limit) == (math.inf, -math.inf)
    with pytest.raises(RecordError, match="rate of its outer is nan"):
        decode(Outer, {**GOOD, "rate": math.nan}, infinite=True)
    with pytest.raises(RecordError, match="rate of its outer is 'nan'"):
        decode(Outer, {**GOOD, "rate": "nan"}, infinite=True)
