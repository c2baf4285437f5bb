import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

from bench.tiny import RECORD
from renorm.bench.measurements import Setting
from renorm.bench.records import Record
from renorm.bench.registry import SUITES
from renorm.bench.session import Plan, Report
from renorm.bench.tables import show


def shown(suite: str, *records: Record, device: str = "cpu") -> str:
    setting = Setting(device, 2, "as it was", {"torch": "2.13.0", "commit": None})
    report = Report(Plan((suite,), device=device), setting, {suite: list(records)})
    out = io.StringIO()
    show(report, Console(file=out, width=80))
    return " ".join(out.getvalue().split())


def step(**changes: Any) -> list[Record]:
    whole = replace(RECORD, **changes)
    base = replace(
        whole, provider=whole.baseline, kernel=None, median_ratio=1.0, median_ms=3.0, min_ms=2.0
    )
    parts = [
        replace(whole, direction=direction, median_ratio=ratio)
        for direction, ratio in (("forward", 0.25), ("backward", 0.75))
    ]
    return [base, whole, *parts]


def test_every_figure_of_a_row() -> None:
    text = shown("nchw", *step())
    assert "renorm (cpu) nn.BatchNorm ms ratio minima fwd bwd GB/s copy" in text
    assert "2x3x4x4 3.000 1.500 0.50 0.40 0.25 0.75 10.0 25%" in text
    assert "commit unknown" in text


def test_rows_are_judged_one_by_one() -> None:
    few = [r for sizes in ((32, 16), (256, 256)) for r in step(suite="rows", shape=sizes)]
    slow = [replace(r, median_ratio=1.2) if r.median_ratio == 0.5 else r for r in few]
    text = shown("rows", *slow)
    assert "renorm: 32x16 1.20 (target at most 1.5: met)" in text
    assert "renorm: 256x256 1.20 (target at most 1: not met)" in text


def test_a_net_has_no_bandwidth() -> None:
    text = shown("resnet18", *step(suite="resnet18", gb_per_s=None, copy_gb_per_s=None))
    assert "0.25 0.75 - -" in text
    assert "renorm: ratio 0.50" in text


def test_on_a_gpu_the_bandwidth_is_judged_where_no_cache_holds_the_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    suite = SUITES["gpu_nchw_float32"]
    large = next(shape for shape in suite.shapes if shape.large)
    text = shown(suite.name, *step(shape=large.sizes), device="cuda")
    assert "large tensors, two passes 0.40 (target at least 0.8: not met)" in text
    assert "the L2 cache is not flushed" in text
    small = next(shape for shape in suite.shapes if not shape.large)
    text = shown(suite.name, *step(shape=small.sizes), device="cuda")
    assert "two passes 0.40" not in text


def test_a_disturbed_measurement_is_not_judged() -> None:
    steady = step(suite="rows", shape=(32, 16))
    disturbed = step(suite="rows", shape=(256, 256), min_ms=0.5)
    text = shown("rows", *steady, *disturbed)
    assert "256x256* 3.000" in text
    assert "32x16 3.000" in text
    assert "renorm: 32x16 0.50 (target at most 1.5: met)" in text
    assert "renorm: 256x256 0.50 (target at most 1: not judged)" in text
    assert "* disturbed by other work" in text
    whole = shown("nchw", *step(min_ms=0.5))
    assert "geometric mean 0.50 (target at most 0.45: not judged)" in whole


def test_a_disturbed_baseline_disturbs_the_ratio() -> None:
    base, *others = step()
    text = shown("nchw", replace(base, min_ms=0.1), *others)
    assert "2x3x4x4* 3.000" in text
    assert "not judged" in text
