"""What the comparison of compensations takes for truth and for estimates, and that it runs."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from renorm.errors import ArgumentError
from renorm.reference import as_patches, centred_exact, centred_first_order, observe
from support.scripts import command

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compensation.py"
SMALL = ["--lr", "0.1", "--norm-batches", "2", "--batch", "4", "--seeds", "1", "--draws", "2"]
SHORT = [*SMALL, "--steps", "3", "--every", "3", "--window", "3"]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("compensation_training")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("compensation")


def draw(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def a_pass(training: Any, seed: int, weight: torch.Tensor) -> Any:
    return training.Pass(draw(2, 3, 5, 5, seed=seed), weight)


def test_estimates_are_those_of_the_reference(training: Any) -> None:
    source = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False).double()
    before = draw(4, 3, 3, 3, seed=0)
    after = before + 0.3 * draw(4, 3, 3, 3, seed=1)
    then, now = a_pass(training, 2, before), a_pass(training, 3, after)
    past = observe(
        as_patches(then.input.numpy(), (3, 3), stride=2, padding=1), before.flatten(1).numpy()
    )
    weight = after.flatten(1).numpy()
    expected = {
        "first_order": centred_first_order(past, weight, expand="sigma"),
        "exact": centred_exact(past, weight),
    }
    with torch.no_grad():
        probe, _ = training.probes(source, positions=18)
        other = a_pass(training, 4, draw(4, 3, 3, 3, seed=5))
        probe.lag(other, now)  # what came before does not count
        found = probe.lag(then, now)
        source.weight.copy_(after)
        y = source(then.input)
    for name, moments in expected.items():
        for got, wanted in zip(found[name], moments, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
    truth = training.by_reference(source, then, now)["truth"]
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    np.testing.assert_allclose(truth[0], mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(truth[1], var, rtol=1e-12)
    assert set(found) | {"none", "paper_nu"} == set(training.ESTIMATES)


def compared(training: Any, changed: str) -> dict[tuple[str, str, str, int], float]:
    """Errors at lag 1 where, since then, one norm's source has other weights."""
    torch.manual_seed(0)
    model = training.build(8).double()
    pairs = training.sources(model, 8)
    comparison = training.Comparison(model, pairs, window=2)
    past = []
    with torch.no_grad():
        for seed in (0, 1):
            images = draw(2, 1, 8, 8, seed=seed)
            with training.Inputs(comparison.sources) as seen:
                model(images)
            weights = {n: s.weight.clone() for n, s in comparison.sources.items()}
            passes = {n: training.Pass(x, weights[n]) for n, x in seen.items()}
            past.append(training.Iteration(images, passes))
            if changed and seed == 0:
                weight = comparison.sources[changed].weight
                weight.add_(0.1 * draw(*weight.shape, seed=2))
        comparison.take(past)
    return {key: mean.root for key, mean in comparison.errors.items()}


def test_where_weights_stay_nothing_is_off(training: Any) -> None:
    errors = compared(training, "")
    assert len(errors) == 2 * 2 * len(training.ESTIMATES)
    assert max(errors.values()) < 1e-10


def test_the_last_layer_alone_is_a_change_of_its_own(training: Any) -> None:
    errors = compared(training, "5.norm2")
    for statistic in ("mu", "sigma"):
        for estimate in training.ESTIMATES:
            own, whole = (errors[truth, statistic, estimate, 1] for truth in training.TRUTHS)
            assert own == pytest.approx(whole, rel=1e-6, abs=1e-10)
        assert errors["own_layer", statistic, "none", 1] > 1e-3
        assert errors["own_layer", statistic, "exact", 1] < 1e-10


def test_an_earlier_layer_changes_what_later_ones_do_not_see(training: Any) -> None:
    errors = compared(training, "1")
    for statistic in ("mu", "sigma"):
        own, whole = (errors[truth, statistic, "exact", 1] for truth in training.TRUTHS)
        assert own < 1e-10
        assert whole > 1e-3


def test_each_norm_has_the_convolution_in_front(training: Any) -> None:
    for side, stem in ((8, (8, 8)), (28, (14, 14))):
        model = training.build(side).double()
        pairs = training.sources(model, side)
        assert len(pairs) == 9
        assert pairs["1"] == "0"
        assert model[0](torch.zeros(1, 1, side, side).double()).shape[2:] == stem


def test_runs_are_recorded_and_none_is_done_twice(script: Any, tmp_path: Path, capsys: Any) -> None:
    file, drawing = tmp_path / "runs.jsonl", tmp_path / "error.svg"
    command = [*SHORT, "--json", str(file), "--svg", str(drawing)]
    assert script.main(command) == 0
    shown = capsys.readouterr()
    assert "1 of 1" in shown.err
    record = json.loads(file.read_text())
    assert record["environment"]["torch"]
    rms = record["rms"]["own_layer"]
    for statistic in ("mu", "sigma"):
        assert [len(values) for values in rms[statistic].values()] == 6 * [2]
        assert max(rms[statistic]["exact"]) < 1e-9 < min(rms[statistic]["none"])
    assert max(rms["mu"]["first_order"]) < 1e-9
    assert set(record["spread"]) == {"4", "8", "16", "32"}
    assert all(record["bias"][s] <= record["spread"][s] for s in record["spread"])
    panels = ElementTree.parse(drawing).getroot().findall("{http://www.w3.org/2000/svg}g")
    assert len(panels) == 4
    assert script.main(command) == 0
    assert capsys.readouterr().out == shown.out
    assert len(file.read_text().splitlines()) == 1


def test_a_decade_is_as_far_up_as_any_other(script: Any) -> None:
    lines = {"a": [1.0, 0.1, 0.01], "b <": [0.0, 1.0, 1.0]}
    document = script.chart({"one": lines, "two": lines, "three": lines}, 2, "lag", "error")
    root = ElementTree.fromstring(document)
    space = "{http://www.w3.org/2000/svg}"
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    drawn = [line.attrib["points"].split() for line in root.iter(f"{space}polyline")]
    assert len(drawn) == 6
    for points in drawn:
        for point in points:
            x, y = map(float, point.split(","))
            assert 0 < x < width / 2
            assert 0 < y < height / 2
    up = [float(point.split(",")[1]) for point in drawn[0]]
    assert up[1] - up[0] == pytest.approx(up[2] - up[1], abs=0.2)
    assert up[0] < up[1]
    assert "b <" in [text.text for text in root.iter(f"{space}text")]


def test_what_is_removed_by_hand(script: Any) -> None:
    by_estimate = {name: [0.5, 0.5] for name in script.ESTIMATES}
    by_estimate |= {"none": [1.0, 2.0], "first_order": [0.1, 1.0], "exact": [0.0, 3.0]}
    rms = {"own_layer": dict.fromkeys(script.STATISTICS, by_estimate)}
    figures = script.Figures(rms, {}, {}, 1.0, 1.0)
    found = [
        script.removed(figures, "own_layer", "mu", name, lag)
        for name in ("first_order", "exact")
        for lag in (1, 2)
    ]
    assert found == pytest.approx([90, 50, 100, -50])
    grid = script.table([figures], "own_layer", window=3)
    cells = [list(column.cells) for column in grid.columns]
    assert cells[:4] == [
        ["mu", "mu", "sigma", "sigma"],
        ["1", "2", "1", "2"],
        ["100.0", "200.0"] * 2,
        ["90.0", "50.0"] * 2,
    ]


@pytest.mark.parametrize("line", ["{", "[]", '{"schema": 1}', '{"schema": 2}', "\x00\xff"])
def test_another_file_is_refused(script: Any, tmp_path: Path, line: str) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text(line + "\n", encoding="latin-1")
    with pytest.raises(ArgumentError, match=r"runs\.jsonl, line 1 is no record"):
        script.read(file)


def test_only_full_windows_are_measured(training: Any) -> None:
    run = training.Run(
        "digits", 0.1, 0, norm_batch=4, batch=8, steps=40, every=5, window=8, draws=1
    )
    assert run.measured == [10, 15, 20, 25, 30, 35, 40]
    with pytest.raises(ArgumentError, match="No step is measured"):
        replace(run, steps=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--norm-batches", "3"], "a multiple of the norm batch, got 4 and 3"),
        (["--lr", "nan"], "above 0, got nan"),
        (["--lr", "1e200"], "is not finite. Lower --lr"),
        (["--data", "nowhere"], "There is no file nowhere"),
    ],
)
def test_a_mistake_is_a_message(
    script: Any, capsys: Any, arguments: list[str], message: str
) -> None:
    assert script.main([*SHORT, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_mistake_on_the_command_line_has_no_traceback() -> None:
    done = command(SCRIPT.name, "--seeds", "0")
    assert done.code == 2
    assert "at least 1, got 0" in done.err
    assert "Traceback" not in done.err
