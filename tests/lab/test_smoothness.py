"""The tasks that look at a training, and the study that is made of them."""

import math
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.lab import training
from renorm.lab.experiment import check_runs
from renorm.lab.normalizers import find as normalizer
from renorm.lab.papers.smoothness import STUDY, arms
from renorm.lab.papers.study import SCALES
from renorm.lab.tasks import TASKS, smoothness
from renorm.lab.tasks.smoothness import CEILING, Looks, descend
from renorm.report.claims import Verdict
from renorm.report.records import Record, Specification

DIGITS = Specification("smooth_digits", "convnet", "batch_norm", "iid", 0, 10, 0.05, 16, 4)
LINEAR = Specification("smooth_linear", "linear", "none", "iid", 0, 10, 0.01, 64, 4)
ONE = torch.ones(1, 1, dtype=torch.float64)


def product(*weights: float) -> Any:
    """A net that multiplies by each of the weights."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights)).double()
    for layer, weight in zip(model, weights, strict=True):
        nn.init.constant_(layer.weight, weight)  # type: ignore[arg-type]
    return model


def half_square(output: Tensor, batch: Any) -> Tensor:
    return output.square().mean() / 2


def test_the_figures_by_hand() -> None:
    # (a b)^2 / 2 at a = 2, b = 3: the gradient (18, 12), and a' = 1.5 after a step of 1 / 36
    looks = Looks((1 / 18,), 1 / 36)
    looks.take(product(2, 3), (ONE, ONE), half_square)
    found = dict(looks.figures)
    # after 1 / 18 it is at (1, 7 / 3), where the gradient is (49 / 9, 7 / 3)
    distance = math.hypot(18 - 49 / 9, 12 - 7 / 3)
    assert found["predictiveness"] == pytest.approx(distance, rel=1e-13)
    assert found["beta"] == pytest.approx(18 * distance / math.hypot(18, 12), rel=1e-13)
    assert found["loss range"] == 0  # of a single step
    assert (found["shift"], found["relative shift"], found["shift cosine"]) == (5.25, 5.25 / 12, 1)


def test_figures_are_medians_and_worst_ones_and_have_a_ceiling() -> None:
    def steep(output: Tensor, batch: Any) -> Tensor:
        return output.square().mean().exp()

    def flat(output: Tensor, batch: Any) -> Tensor:
        return output.square().mean()

    looks = Looks((1e-2, 2e-2), 1e-3)
    for loss in (flat, steep, flat):
        looks.take(product(3, 3), (ONE, ONE), loss)
    found = dict(looks.figures)
    assert found["worst predictiveness"] == found["worst loss range"] == CEILING  # all infinite
    assert found["predictiveness"] < 1e3
    assert found["beta"] < 1e3


def test_there_are_no_figures_without_a_look() -> None:
    assert Looks((0.1,), 0.1).figures == ()


def test_looking_changes_nothing_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses() -> list[float]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
        batch = torch.randn(16, 3), torch.randn(16, 1)
        return descend(model, repeat(batch), nn.functional.mse_loss, 7, 0.1, (0.1,)).losses

    looked = losses()
    monkeypatch.setattr(Looks, "take", lambda self, *given: None)
    assert losses() == looked
    assert len(looked) == 7


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (7, 2), (20, 4), (59, 12), (400, 20)])
def test_looks_are_spread_over_the_run(
    steps: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(Looks, "take", lambda self, *given: taken.append(given))
    monkeypatch.setattr(Looks, "figures", ())
    descend(product(1.0, 1.0), repeat((ONE, ONE)), nn.functional.mse_loss, steps, 0.01, (0.1,))
    assert len(taken) == count


def test_a_run_on_images() -> None:
    record = training.run(DIGITS)
    assert record.figures
    assert record.score is not None
    assert {name for name, _ in record.figures} >= {"loss range", "predictiveness", "shift cosine"}
    assert record == training.run(DIGITS)


def test_a_run_of_the_linear_net() -> None:
    record = training.run(LINEAR)
    figures = dict(record.figures)
    assert record.score is not None
    assert record.score < 1
    assert -1 <= figures["shift cosine"] <= 1
    assert figures["predictiveness"] > 0


def test_a_run_that_diverges_keeps_the_looks_from_before() -> None:
    record = training.run(replace(LINEAR, lr=0.5, steps=60))
    assert record.score is None
    assert record.diverged_at is not None
    assert record.diverged_at > 1
    assert record.figures


@pytest.mark.parametrize("run", [DIGITS, LINEAR])
def test_conditions_with_groups_are_refused(run: Specification) -> None:
    task = TASKS[run.task].build(run.model, None)
    task.check(training.plan(run))
    with pytest.raises(ArgumentError, match="only the condition 'iid', got 'microbatch'"):
        task.check(training.plan(replace(run, condition="microbatch")))


def test_the_linear_net_is_as_deep_as_it_says() -> None:
    net = smoothness.DeepLinear(4, 8)._net()
    kinds = [type(layer).__name__ for layer in net]
    assert kinds == [*["Linear", "BatchNorm1d"] * 3, "Linear"]


@pytest.mark.parametrize("scale", SCALES)
def test_the_arms_can_be_run(scale: str) -> None:
    for run in arms(scale).values():
        assert normalizer(run.normalizer).name == run.normalizer  # as records have it
        assert run.model in TASKS[run.task].models
        assert run.seed == 0


def record(run: Specification, figures: dict[str, float], score: float) -> Record:
    # a lower loss where the score is better
    return Record(run, score=score, loss=2 - score, figures=tuple(figures.items()))


def papers(arm: str, seed: int) -> tuple[dict[str, float], float]:
    """What the paper would have an arm measure, a little different from seed to seed."""
    none, linear = "none" in arm, "linear" in arm
    wide, little = 60.0 if none else 1.0, 1 + seed / 100
    cosine = 0.99 if linear and none else 0.5 if linear or arm == "noisy" else 0.9
    figures = {"loss range": wide, "predictiveness": wide, "beta": wide, "shift": 0.4}
    figures = {name: value * little for name, value in figures.items()}
    return figures | {"shift cosine": cosine + seed / 1e4}, (0.4 if none else 0.8) + seed / 1e4


@pytest.mark.parametrize("scale", SCALES)
def test_every_claim_is_decided_by_the_arms(scale: str) -> None:
    found = [
        record(replace(run, seed=seed), *papers(arm, seed))
        for arm, run in arms(scale).items()
        for seed in range(3)
    ]
    verdicts = {one.claim.text: one.verdict for one in STUDY.judge(scale, found)}
    assert set(verdicts.values()) == {Verdict.REPRODUCED}
    assert {one.verdict for one in STUDY.judge(scale, [])} == {Verdict.OPEN}


def test_a_normalizer_that_cannot_stand_in_the_net_is_refused_before_any_run() -> None:
    state = torch.get_rng_state()
    with pytest.raises(ArgumentError, match=r"32 channels.*5|5.*32"):
        check_runs([replace(LINEAR, normalizer="group_norm(groups=5)")], None)
    assert torch.equal(torch.get_rng_state(), state)
