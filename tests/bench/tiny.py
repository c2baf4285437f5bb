"""Suites so small that a test can run them."""

import pytest

from renorm.bench import allocator
from renorm.bench.registry import SUITES, Kind, Shape, Suite, Target

SIZES = ((4, 3, 5, 5), (2, 4, 6, 6))
MET = Target(1e6)


def suite(kind: Kind, name: str = "tiny", target: Target = MET) -> Suite:
    """A suite of two small shapes, of which a short run takes one."""
    sizes = ((2, 3, 32, 32),) if kind == "model" else SIZES
    return Suite(name, "small shapes", kind, tuple(Shape(name, s) for s in sizes), (0,), target)


def plant(monkeypatch: pytest.MonkeyPatch, *suites: Suite) -> None:
    """Add suites to the registry, and leave the allocator of this process alone."""
    for one in suites:
        monkeypatch.setitem(SUITES, one.name, one)
    monkeypatch.setattr(allocator, "keep_freed_pages", lambda: "as it was")
