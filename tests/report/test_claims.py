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
    judge,
    more_than,
    orders,
    percent,
    percent_in_train_mode,
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
    "ours": scored(0.9, 0.8, 0.7, train_mode_score=0.5, figures=(("size", 200.0),)),
    "theirs": scored(0.5, 0.6, figures=(("size", 2.0),)),
    "diverged": scored(None, None, diverged_at=3),
}


@pytest.mark.parametrize(
    ("evidence", "mean", "count"),
    [
        (contrast({"ours": 1, "theirs": -1}), 30.0, 2),
        (contrast({"ours": 1, "theirs": -1 / 3, "diverged": -2 / 3}), 85 - 55 / 3, 2),
        (alone("ours", percent_in_train_mode), 50.0, 3),
        (weighted([(1, "ours", percent), (-1, "ours", percent_in_train_mode)]), 30.0, 3),
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
        times_as_fast("ours", "unknown"),
    ],
)
def test_without_runs_there_is_no_evidence(evidence: Evidence) -> None:
    assert evidence(RUNS) is None


def test_a_failed_run_is_left_out() -> None:
    runs = {"arm": {**scored(0.5), 1: Record(RUN, error="ValueError")}}
    assert alone("arm", percent)(runs) == Estimate(50.0, None, 1)


@pytest.mark.parametrize(
    ("curve", "times"),
    [
        (((50, 0.4), (100, 0.8)), 100 / 75),  # 0.6 lies in the middle of the second half
        (((50, 0.6), (100, 0.8)), 2.0),
        (((50, 1.0), (100, 1.0)), 100 / 30),
        (((50, 0.1), (100, 0.2)), 1.0),  # never
    ],
)
def test_speed_is_where_the_curve_gets_to_the_others_end(
    curve: tuple[tuple[int, float], ...], times: float
) -> None:
    runs = {"ours": scored(curve[-1][1], curve=curve), "theirs": scored(0.6)}
    found = times_as_fast("ours", "theirs")(runs)
    assert found is not None
    assert found.mean == pytest.approx(times)


def test_a_shorter_run_counts_its_own_steps() -> None:
    short = {0: Record(replace(RUN, steps=40), score=0.9, curve=((20, 0.1), (40, 0.2)))}
    found = times_as_fast("ours", "theirs")({"ours": short, "theirs": scored(0.6)})
    assert found is not None
    assert found.mean == pytest.approx(2.5)


def test_a_claim_without_runs_is_open() -> None:
    claims = (Claim("better", contrast({"ours": 1, "theirs": -1}), more_than()),)
    (found,) = judge(claims, {"ours": {}, "theirs": {}})
    assert (found.ours, found.verdict, found.figure) == (None, Verdict.OPEN, "-")


def test_figures_are_written_with_their_unit() -> None:
    evidence = contrast({"ours": 1, "theirs": -1})
    (found,) = judge((Claim("", evidence, more_than(), decimals=2),), RUNS)
    assert found.figure == "30.00 ± 127.06 points"
