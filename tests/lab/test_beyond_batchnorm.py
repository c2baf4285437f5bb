"""The study of Lubana et al.: its arms can be run, and its claims follow from records."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from renorm.lab.papers import SCALES, STUDIES
from renorm.lab.training import plan, run
from renorm.measure import closed_forms
from renorm.report.claims import Judged, Verdict
from renorm.report.records import Record, Specification

STUDY = STUDIES["beyond-batchnorm"]
ARMS = STUDY.arms("smoke")
NAMES = [name.removeprefix("trained, ") for name in ARMS if name.startswith("trained, ")]


def judged(figures: Mapping[str, Mapping[str, float]], losses: Mapping[str, float | None]) -> dict:
    """Verdicts by the beginnings of their texts, of three seeds that differ a little."""
    records = []
    for name, arm in ARMS.items():
        for seed in range(3):
            found = {"finite": 1.0, **figures.get(name, {})}
            values = tuple((key, value * (1 + 0.001 * seed)) for key, value in found.items())
            loss = losses.get(name)
            records.append(Record(replace(arm, seed=seed), score=0.5, loss=loss, figures=values))
    return {one.claim.text: one for one in STUDY.judge("smoke", records)}


def the(found: dict[str, Judged], beginning: str) -> Judged:
    (one,) = [judgement for text, judgement in found.items() if text.startswith(beginning)]
    return one


@pytest.mark.parametrize("scale", SCALES)
def test_every_arm_has_names_that_there_are(scale: str) -> None:
    arms = STUDY.arms(scale)
    for specification in arms.values():
        assert plan(specification).normalizer.name == specification.normalizer


def test_what_follows_the_closed_forms_is_reproduced() -> None:
    layers = range(1, 13)
    told = closed_forms.correlation_by_depth(0, 12)
    figures = {
        "residual, none": {f"stream {block}": 2.0**block for block in range(1, 8)},
        "residual, batch_norm": {f"stream {block}": block + 1 for block in range(1, 8)},
        "residual, layer_norm": {f"stream {block}": 2.0**block for block in range(1, 8)},
        "plain, batch_norm": {"gradient_growth": closed_forms.gradient_growth()},
        "plain, layer_norm": {
            "gradient_growth": 1.2,
            **{f"cosine {layer}": float(told[layer - 1]) + 0.02 for layer in layers},
        },
        "group size 2": {"gradient_growth": 1.3067},
    }
    found = judged(figures, {})
    for beginning, verdict in {
        "Without a normalizer the mean square": Verdict.REPRODUCED,
        "With batch norm on the branch": Verdict.REPRODUCED,
        "With layer norm on the branch": Verdict.CONTRADICTED,
        "With batch norm the squared": Verdict.REPRODUCED,
        "With layer norm it stays": Verdict.CONTRADICTED,
        "With no normalizer it stays": Verdict.OPEN,
        "With layer norm the cosine": Verdict.REPRODUCED,
        "Groups of 2:": Verdict.REPRODUCED,
        "Groups of 4:": Verdict.OPEN,
    }.items():
        assert the(found, beginning).verdict == verdict, beginning


def test_the_least_step_decides_over_group_sizes() -> None:
    names = [name for name in ARMS if name.startswith("group size")]
    figures = {
        name: {"cosine": 0.1 * place, "stable_rank": 9.0 - place, "gradient_ratio": 10.0**-place}
        for place, name in enumerate(names, 1)
    }
    found = judged(figures, {})
    assert the(found, "Larger groups").verdict == Verdict.REPRODUCED
    assert the(found, "The stable rank").verdict == Verdict.REPRODUCED
    assert the(found, "Smaller groups").figure == "1.000 ± 0.000 orders"
    figures[names[3]]["cosine"] = 0.15
    assert the(judged(figures, {}), "Larger groups").verdict == Verdict.CONTRADICTED


@pytest.mark.parametrize(("sign", "points", "best"), [(1, 50, 100), (-1, -50, 0)])
def test_the_agreement_of_the_ranking_with_training(sign: int, points: int, best: int) -> None:
    predicted = {
        f"predicted, {name}": {"cosine": 0.05 * i, "contrast": 2 - 0.1 * i}
        for i, name in enumerate(NAMES)
    }
    losses = {f"trained, {name}": 1.5 + sign * 0.05 * i for i, name in enumerate(NAMES)}
    found = judged(predicted, losses)
    for beginning in ("renorm predict", "The more alike examples are", "The more pooling leaves"):
        for text, one in found.items():
            if text.startswith(beginning) and "group sizes" not in text:
                assert one.ours is not None
                assert one.ours.mean == pytest.approx(points)
    first = the(found, "The first three of renorm").ours
    assert first is not None
    assert first.mean == best


def test_what_is_told_unstable_and_diverges_agrees() -> None:
    predicted = {f"predicted, {name}": {"cosine": 0.1 + 0.05 * i} for i, name in enumerate(NAMES)}
    losses: dict[str, float | None] = {
        f"trained, {name}": 1.0 + 0.1 * i for i, name in enumerate(NAMES)
    }
    predicted[f"predicted, {NAMES[0]}"]["gradient_ratio"] = 1e3
    losses[f"trained, {NAMES[0]}"] = None
    ours = the(judged(predicted, losses), "renorm predict").ours
    assert ours is not None
    assert ours.mean == pytest.approx(50)


def test_a_failed_run_is_no_evidence() -> None:
    arm: Specification = ARMS["trained, layer_norm"]
    claim = the(judged({}, {}), "Layer norm trains").claim
    failed = {0: Record(arm, error="it failed")}
    other = {0: Record(ARMS["trained, group_norm(group_size=4)"], score=0.5, loss=1.0)}
    runs = {"trained, layer_norm": failed, "trained, group_norm(group_size=4)": other}
    assert claim.evidence(runs) is None
    diverged = {**runs, "trained, layer_norm": {0: Record(arm)}}
    found = claim.evidence(diverged)
    assert found is not None
    assert found.mean == pytest.approx(math.log(10) - 1)  # that of guessing


@pytest.mark.parametrize("name", ["residual, none", "group size all"])
def test_arms_give_the_figures_that_claims_read(name: str) -> None:
    found = dict(run(ARMS[name]).figures)
    wanted = ("stream 1", "stream 7") if name.startswith("res") else ("cosine", "gradient_growth")
    assert all(math.isfinite(found[one]) for one in wanted)
