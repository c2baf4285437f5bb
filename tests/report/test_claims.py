import math
from dataclasses import replace

import pytest

from renorm.report.claims import (
    Claim,
    Evidence,
    Rule,
    Runs,
    Verdict,
    alone,
    between,
    contrast,
    figure,
    gap,
    judge,
    last_loss,
    more_than,
    orders,
    percent,
    times_as_fast,
    weighted,
)
from renorm.report.records import Record, Specification
from renorm.report.statistics import Estimate

RUN = Specification("digits", "mlp", "batch_norm", "iid", 0, 100, 0.1, 32, 4)


def scored(*scores: float | None, **others) -> dict[int, Record]:
    return {seed: Record(RUN, score=score, **others) for seed, score in enumerate(scores)}


@pytest.mark.parametrize(
    ("rule", "mean", "half_width", "verdict"),
    [
        (more_than(2), 2.0, 1.9, Verdict.REPRODUCED),
        (more_than(2), 1.9, 1.8, Verdict.DIRECTION),
        (more_than(2), 1.9, 1.9, Verdict.INVISIBLE),
        (more_than(2), -1.9, 1.8, Verdict.CONTRADICTED),
        (more_than(2), 50.0, None, Verdict.INVISIBLE),
        (more_than(2.3, nothing=1), 2.4, 1.3, Verdict.REPRODUCED),
        (more_than(2.3, nothing=1), 2.4, 1.5, Verdict.INVISIBLE),
        (more_than(2.3, nothing=1), 0.5, 0.1, Verdict.CONTRADICTED),
        (between(-1, 1), 0.5, 0.5, Verdict.REPRODUCED),
        (between(-1, 1), 0.5, 0.6, Verdict.DIRECTION),
        (between(-1, 1), 1.5, 0.5, Verdict.INVISIBLE),
        (between(-1, 1), 1.5, 0.4, Verdict.CONTRADICTED),
        (between(-1, 1), -1.5, 0.4, Verdict.CONTRADICTED),
        (between(-1, math.inf), 90.0, 5.0, Verdict.REPRODUCED),
        (between(-1, 1), 0.0, None, Verdict.INVISIBLE),
    ],
)
def test_a_verdict_follows_from_the_interval(
    rule: Rule, mean: float, half_width: float | None, verdict: Verdict
) -> None:
    assert rule(Estimate(mean, half_width, 3)) is verdict


RUNS: Runs = {
    "ours": scored(
        0.9, 0.8, 0.7, train_mode_score=0.7, eval_mode_score=0.4, figures=(("size", 200.0),)
    ),
    "theirs": scored(0.5, 0.6, figures=(("size", 2.0),)),
    "diverged": scored(None, None, diverged_at=3),
    "nothing": scored(0.5, 0.5, figures=(("size", 0.0),)),
}


@pytest.mark.parametrize(
    ("evidence", "mean", "count"),
    [
        (contrast({"ours": 1, "theirs": -1}), 30.0, 2),
        (contrast({"ours": 1, "theirs": -1 / 3, "diverged": -2 / 3}), 85 - 55 / 3, 2),
        (alone("ours", gap), 30.0, 3),  # on the same batches: not of the score
        (alone("diverged", gap), 0.0, 2),
        (weighted([(1, "ours", percent), (-1, "ours", gap)]), 50.0, 3),
        (orders("ours", "theirs", figure("size")), 2.0, 2),
        (alone("diverged", percent), 0.0, 2),
    ],
)
def test_evidence_is_taken_seed_by_seed(evidence: Evidence, mean: float, count: int) -> None:
    found = evidence(RUNS)
    assert found is not None
    assert found.mean == pytest.approx(mean)
    assert found.count == count


@pytest.mark.parametrize(
    "evidence",
    [
        contrast({"ours": 1, "unknown": -1}),
        alone("theirs", lambda record: None),
        alone("ours", figure("weight")),
        alone("theirs", gap),
        orders("ours", "nothing", figure("size")),
        times_as_fast("ours", "unknown"),
    ],
)
def test_without_runs_there_is_no_evidence(evidence: Evidence) -> None:
    assert evidence(RUNS) is None


def test_a_failed_run_is_left_out() -> None:
    runs = {"arm": {**scored(0.5), 1: Record(RUN, error="ValueError")}}
    assert alone("arm", percent)(runs) == Estimate(50.0, None, 1)


def curve_of(*points: tuple[int, float], steps: int = 100, **others) -> dict[int, Record]:
    score = points[-1][1] if points else None
    others = {"score": score, "curve": points} | others
    return {0: Record(replace(RUN, steps=steps), **others)}


BASELINE = curve_of((50, 0.3), (100, 0.6))


@pytest.mark.parametrize(
    ("ours", "times"),
    [
        (curve_of((50, 0.4), (100, 0.8)), 100 / 75),  # both lines rise as 0.99 of this
        (curve_of((50, 0.6), (100, 0.8)), 2.0),
        (curve_of((50, 1.0), (100, 1.0)), 100 / 30),
        (curve_of((20, 0.6), (40, 0.7), steps=40), 5.0),
        (BASELINE, 1.0),
        (curve_of((50, 0.1), (100, 0.2)), 0.0),  # never
        (curve_of((20, 0.1), (40, 0.2), steps=40), 1.0),  # nothing is known of later steps
        (curve_of((20, 0.1), steps=40, score=None, diverged_at=30), 0.0),
        (curve_of(steps=40, diverged_at=3), 0.0),
    ],
)
def test_speed_is_where_the_curves_get_to_the_others_end(
    ours: dict[int, Record], times: float
) -> None:
    found = times_as_fast("ours", "theirs")({"ours": ours, "theirs": BASELINE})
    assert found is not None
    assert found.mean == pytest.approx(times)


def test_a_run_is_as_fast_as_itself_on_a_plateau() -> None:
    level = curve_of((20, 0.6), (40, 0.58), (100, 0.6))
    found = times_as_fast("ours", "theirs")({"ours": level, "theirs": level})
    assert found == Estimate(1.0, None, 1)


def test_noise_on_a_plateau_does_not_decide_when_a_score_is_nearly_got_to() -> None:
    level = curve_of((20, 0.6), (40, 0.595), (100, 0.601))  # 99 % of the last is 0.59499
    found = times_as_fast("ours", "theirs")({"ours": curve_of((10, 0.6)), "theirs": level})
    assert found is not None
    assert found.mean == pytest.approx(2.0)


@pytest.mark.parametrize("theirs", [curve_of(diverged_at=9), curve_of((100, 0.0))])
def test_there_is_no_speed_without_a_score_to_get_to(theirs: dict[int, Record]) -> None:
    assert times_as_fast("ours", "theirs")({"ours": BASELINE, "theirs": theirs}) is None


@pytest.mark.parametrize(
    ("record", "loss"),
    [
        (Record(RUN, loss=0.5), 0.5),
        (Record(RUN, loss=7.0), 2.0),
        (Record(RUN, diverged_at=3), 2.0),
        (Record(RUN, error="ValueError"), None),
    ],
)
def test_a_run_that_diverged_has_the_largest_loss(record: Record, loss: float | None) -> None:
    assert last_loss(2.0)(record) == loss


def test_a_failed_run_has_no_speed() -> None:
    failed = {0: Record(RUN, error="ValueError")}
    assert times_as_fast("ours", "theirs")({"ours": failed, "theirs": BASELINE}) is None


def test_a_claim_without_runs_is_open() -> None:
    claims = (Claim("better", contrast({"ours": 1, "theirs": -1}), more_than()),)
    (found,) = judge(claims, {"ours": {}, "theirs": {}})
    assert (found.ours, found.verdict, found.figure) == (None, Verdict.OPEN, "-")


def test_figures_are_written_with_their_unit() -> None:
    evidence = contrast({"ours": 1, "theirs": -1})
    (found,) = judge((Claim("", evidence, more_than(), decimals=2),), RUNS)
    assert found.figure == "30.00 ± 127.06 points"
