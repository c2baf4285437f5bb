"""What every finding has: words, finite figures, code that runs; and that it is a pure function."""

import json
import math
import re
import textwrap
from dataclasses import replace

import pytest
import torch
from charts import beside, healthy, setting
from sickness import MORE, SICK
from torch import Tensor, nn

import renorm
from renorm.findings import SEVERITIES, Finding, judge
from renorm.measure import saving
from renorm.measure.records import MODEL, LayerFacts, Survey

SURVEYS = {name: survey for name, (_, survey) in SICK.items()} | MORE
EVERY = [
    pytest.param(survey, one, id=f"{name}-{one.id}")
    for name, survey in SURVEYS.items()
    for one in judge(survey)
]


def net(survey: Survey) -> nn.Module:
    """A model whose layers are as the survey has them."""
    width = 16
    layers: list[nn.Module] = [
        nn.ReLU() if i % 3 else nn.Conv2d(3 if i == 0 else width, width, 1) for i in range(8)
    ]
    for one in survey.of(LayerFacts):
        tracks = one.statistics != "none"
        layers[int(one.layer)] = nn.BatchNorm2d(width, track_running_stats=tracks)
    model = nn.Sequential(*layers)
    ours = any(one.limits != "batch norm" for one in survey.of(LayerFacts))
    if ours:
        renorm.convert(model)
    if ours and all(one.statistics == "frozen" for one in survey.of(LayerFacts)):
        renorm.freeze(model)
    return model


@pytest.mark.parametrize(("survey", "one"), EVERY)
def test_code_runs(survey: Survey, one: Finding, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = net(survey)
    batches = [(torch.randn(4, 3, 6, 6), torch.zeros(4)) for _ in range(3)]
    names = {"model": model, "batches": batches}
    exec(compile(one.code, one.id, "exec"), names)
    capsys.readouterr()
    assert model(batches[0][0]).isfinite().all()


@pytest.mark.parametrize(("survey", "one"), EVERY)
def test_a_finding_says_all(survey: Survey, one: Finding) -> None:
    assert one.id in SICK
    assert one.severity in SEVERITIES
    assert 10 < len(one.title) < 120
    assert one.evidence
    assert all(math.isfinite(figure.value) for figure in one.evidence)
    assert all(figure.threshold is None or math.isfinite(figure.threshold)
               for figure in one.evidence)  # fmt: skip
    assert math.isfinite(one.weight)
    assert one.weight > 0
    for words in (one.meaning, one.threshold, one.advice, one.gain):
        assert re.match(r"[A-Za-z0-9].*\.$", words, re.DOTALL), words
        assert "  " not in words
        assert "None " not in words
        assert "nan" not in words.split()
    known = {*survey.layers(), MODEL}
    assert set(one.layers) <= known
    assert len(set(one.layers)) == len(one.layers)
    assert {figure.layer for figure in one.evidence} <= known


@pytest.mark.parametrize(("survey", "one"), EVERY)
def test_advice_is_short_enough_for_two_lines_of_a_terminal(survey: Survey, one: Finding) -> None:
    assert len(textwrap.wrap(f"Do: {one.advice}", 78)) <= 2, one.advice


@pytest.mark.parametrize("name", SURVEYS)
def test_judging_is_pure_and_survives_json(name: str) -> None:
    survey = SURVEYS[name]
    lines = list(saving.to_lines(survey))
    first = judge(survey)
    assert list(saving.to_lines(survey)) == lines
    assert judge(saving.from_lines(lines)) == judge(survey) == first


@pytest.mark.parametrize("name", SURVEYS)
def test_a_survey_that_was_interrupted_is_judged(name: str) -> None:
    survey = SURVEYS[name]
    for kind in {type(one) for one in survey.records}:
        rest = tuple(one for one in survey.records if type(one) is not kind)
        judge(replace(survey, records=rest))
    assert judge(replace(survey, records=())) == ()


def test_code_of_dead_channels_sets_them_back() -> None:
    survey = SICK["dead_channels"][1]
    model = net(survey)
    layer = model.get_submodule("4")
    assert isinstance(layer, nn.BatchNorm2d)
    nn.init.constant_(layer.weight, 2.0)
    exec(judge(survey)[0].code, {"model": model})
    assert layer.weight.tolist() == [2, 1, 1, 1, 2, 1] + [2] * 10


def test_code_of_a_redundant_bias_keeps_the_output() -> None:
    survey = SICK["redundant_bias"][1]
    model, x = net(survey).double().eval(), torch.randn(2, 3, 4, 4).double()
    before = model(x)
    exec(judge(survey)[0].code, {"model": model})
    source = model.get_submodule("3")
    assert isinstance(source, nn.Conv2d)
    assert source.bias is None
    assert torch.allclose(model(x), before)


def test_code_of_the_other_convention_of_momentum() -> None:
    survey = SICK["momentum_convention"][1]
    model = net(survey)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.99
    exec(judge(survey)[0].code, {"model": model, "batches": [torch.randn(4, 3, 6, 6)]})
    found = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert found == [0.01] * 3


def test_code_for_bad_statistics_makes_them_finite() -> None:
    survey = SICK["non_finite"][1]
    model = net(survey)
    broken = model.get_submodule("4")
    assert isinstance(broken, nn.BatchNorm2d)
    assert isinstance(broken.running_var, Tensor)
    broken.running_var[3] = torch.nan
    exec(judge(survey)[0].code, {"model": model, "batches": [torch.randn(4, 3, 6, 6)]})
    assert model.eval()(torch.randn(2, 3, 6, 6)).isfinite().all()


def test_limits_are_for_the_length_that_was_said() -> None:
    survey = beside(SICK["small_batch"][1], setting(steps=12_345))
    assert "total_steps = 12_345\n" in judge(survey)[0].code
    short = judge(beside(SICK["small_batch"][1], setting(steps=500)))[0].code
    assert "over(total_steps)\nrenorm.convert(model, limits=limits, momentum=0.1)" in short
    assert "of your run" in judge(SICK["small_batch"][1])[0].code


def test_figures_are_json() -> None:
    for survey in SURVEYS.values():
        for one in judge(survey):
            json.dumps([figure.value for figure in one.evidence], allow_nan=False)
    assert judge(healthy()) == ()
