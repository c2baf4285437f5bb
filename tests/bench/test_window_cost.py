"""The authors' formulation, what is counted as memory, and that the benchmark runs."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from renorm.bench.resnet import CLASSES
from renorm.errors import ArgumentError
from renorm.lab.models.resnet import Block
from renorm.reference import (
    CrossIterationState,
    as_maps,
    as_patches,
    as_rows,
    cross_iteration_norm_backward,
    cross_iteration_step,
    linear_backward,
)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("window_cost")


@pytest.fixture
def tiny(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def plain(net: str) -> nn.Module:
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
        return nn.Sequential(Block(3, 8, 2), *head)

    monkeypatch.setattr(script, "plain", plain)
    return script


def a_setting(script: Any, **changes: Any) -> Any:
    values = {"net": "renorm", "batch": 2, "side": 8, "window": 3, "threads": 1}
    return script.Setting(**(values | changes))


def draw(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_official_layer_is_the_paper_forward_and_backward(script: Any) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)).double()
    official = importlib.import_module("window_cost_official")
    model: Any = official.converted(net, window=3, example=draw(2, 2, 4, 4, seed=0))
    conv, norm = model
    weight = conv.weight.detach().numpy().reshape(3, -1).copy()
    state = CrossIterationState((), np.zeros(3), np.ones(3))
    one, zero = np.ones(3), np.zeros(3)
    for t in range(5):
        x, dz = draw(2, 2, 4, 4, seed=2 * t), draw(2, 3, 4, 4, seed=2 * t + 1)
        patches = as_patches(x.numpy(), (3, 3), padding=1)
        step, state = cross_iteration_step(
            patches, weight, None, one, zero, state, window=3, burn_in=0, momentum=0.1, eps=1e-5
        )
        dy, _, dbeta = cross_iteration_norm_backward(
            as_rows(dz.numpy()), step.y, step.mu_bar, step.var_bar, step.k, one, 1e-5
        )
        _, dweight, _ = linear_backward(dy, patches, weight)
        model.zero_grad()
        z = model(x)
        z.backward(dz)
        shape = tuple(z.shape)
        np.testing.assert_allclose(z.detach().numpy(), as_maps(step.z, shape), atol=1e-11)
        np.testing.assert_allclose(conv.weight.grad.numpy().reshape(3, -1), dweight, atol=1e-10)
        np.testing.assert_allclose(norm.bias.grad.numpy(), dbeta, atol=1e-11)
        np.testing.assert_allclose(norm.running_mean.numpy(), state.mean, atol=1e-12)
        np.testing.assert_allclose(norm.running_var.numpy(), state.var, atol=1e-11)
        # small, or a variance is negative and the authors' code leaves the iteration out
        weight = weight + 0.02 * draw(*weight.shape, seed=100 + t).numpy()
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(weight).view_as(conv.weight))
    assert len(norm.past) == 2


def test_an_iteration_of_negative_variance_is_left_out_of_its_channel(script: Any) -> None:
    official = importlib.import_module("window_cost_official")
    moments = [
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 5.0])),
        (torch.tensor([3.0, 4.0]), torch.tensor([8.0, 18.0])),
    ]
    mean, var = official._combined(moments)
    assert mean.tolist() == [1.0, 3.0]
    assert var.tolist() == [1.0, 2.5]


def test_memory_is_what_the_formula_says(tiny: Any) -> None:
    weights, channels, window = 8 * 27 + 8 * 72 + 8 * 3, 3 * 8, 4
    setting = a_setting(tiny, window=window)
    found = {name: tiny.memory(setting, name) for name in tiny.PROVIDERS}
    for name, one in found.items():
        assert one.official == (window - 1) * 3 * weights * 4
        if name != tiny.OFFICIAL:
            assert one.formula == one.tensors
    assert found[tiny.BASELINE].tensors == 0
    assert found["first_order"].tensors > found["none"].tensors > 0
    means_of_two = (window - 1) * 2 * channels * 4
    assert found[tiny.OFFICIAL].tensors == found[tiny.OFFICIAL].formula + means_of_two


def test_a_new_process_knows_its_peak(script: Any) -> None:
    setting = a_setting(script, side=33, window=2)
    found = script.afresh(setting, "first_order")
    assert found.tensors == found.formula > 10 * 2**20
    assert found.peak is None or found.peak > found.tensors


def die(setting: Any, provider: str) -> None:
    os._exit(1)


def test_a_process_that_dies_is_a_message(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "memory", die)
    with pytest.raises(ArgumentError, match="process of official has died"):
        script.afresh(a_setting(script), script.OFFICIAL)


def test_a_record_for_each_provider(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(tiny, "afresh", tiny.memory)
    monkeypatch.setattr(tiny.allocator, "keep_freed_pages", lambda: "left as it is")
    file = tmp_path / "rows.jsonl"
    command = ["--batches", "2", "3", "--side", "33", "--window", "2", "--turns", "2"]
    threads = torch.get_num_threads()
    assert tiny.main([*command, "--threads", str(threads), "--json", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    suites = [(row["suite"], row["batch"]) for row in rows]
    expected = [("window_memory", 2), ("window_time", 2), ("window_time", 3)]
    assert suites == [suite for suite in expected for _ in tiny.PROVIDERS]
    for row in rows:
        assert row["environment"]["torch"]
        if row["suite"] == "window_time":
            assert 0 < row["min_ms"] <= row["median_ms"]
            assert row["turns"] == 2
    shown = capsys.readouterr().out
    assert all(shown.count(f"\n{name}") == 3 for name in tiny.PROVIDERS)


def test_what_is_added_by_hand(script: Any) -> None:
    times = [
        script.Time("nn.BatchNorm", 10.0, 9.0, 1.0, 1.0, 5),
        script.Time("first_order", 11.0, 5.0, 1.1, 5 / 9, 5),
        script.Time("official", 14.0, 13.0, 1.4, 13 / 9, 5),
    ]
    grid = script.time_table(times)
    rows = list(zip(*(list(column.cells) for column in grid.columns), strict=True))
    assert rows == [
        ("nn.BatchNorm", "10.0", "1.000", "1.000", "-", "-"),
        ("first_order*", "11.0", "1.100", "0.556", "10.0", "25"),
        ("official", "14.0", "1.400", "1.444", "40.0", "100"),
    ]


def test_mistakes_are_messages(script: Any, tmp_path: Path, capsys: Any) -> None:
    assert script.main(["--json", str(tmp_path / "no" / "rows.jsonl")]) == 2
    assert "cannot be used" in capsys.readouterr().err
    for wrong in (["--window", "1"], ["--turns", "0"], ["--batches", "0"]):
        with pytest.raises(SystemExit) as refused:
            script.main(wrong)
        assert refused.value.code == 2
