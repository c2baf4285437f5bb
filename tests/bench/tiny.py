"""Suites so small that a test can run them, and a record as they make it."""

import pytest

from renorm.bench import allocator, measurements
from renorm.bench.records import Record
from renorm.bench.registry import SUITES, Kind, Shape, Suite, Target

SIZES = ((4, 3, 5, 5), (2, 4, 6, 6))
MET = Target(1e6)

RECORD = Record(
    suite="nchw",
    shape=(2, 3, 4, 4),
    layout="contiguous",
    dtype="float32",
    device="cpu",
    provider="renorm",
    direction="both",
    baseline="nn.BatchNorm",
    median_ratio=0.5,
    min_ratio=0.4,
    median_ms=1.5,
    min_ms=1.25,
    kernel="cpu",
    turns=7,
    bytes=1920,
    gb_per_s=10.0,
    two_pass_bytes=3072,
    copy_gb_per_s=40.0,
    threads=2,
    allocator="glibc, freed pages are kept",
    environment={"torch": "2.13.0", "commit": None},
)


def suite(kind: Kind, name: str = "tiny", target: Target = MET) -> Suite:
    """A suite of two small shapes, of which a short run takes one."""
    sizes = ((2, 3, 32, 32),) if kind == "model" else SIZES
    return Suite(name, "small shapes", kind, tuple(Shape(name, s) for s in sizes), (0,), target)


def plant(monkeypatch: pytest.MonkeyPatch, *suites: Suite) -> None:
    """Add suites to the registry, and leave the allocator of this process alone."""
    for one in suites:
        monkeypatch.setitem(SUITES, one.name, one)
    monkeypatch.setattr(allocator, "keep_freed_pages", lambda: "as it was")


def interrupt_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Ctrl-C pressed while the second shape is timed."""
    whole = measurements.timed
    calls: list[int] = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(measurements, "timed", interrupted)
