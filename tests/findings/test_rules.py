"""Each rule on the record of its cause, and on both sides of its threshold."""

import math
from typing import Any

import pytest
from charts import (
    beside,
    changed,
    found,
    healthy,
    ill,
    renormed,
    setting,
    severity,
    stale,
)
from scipy import stats
from sickness import SICK, momentum, never_updated, of_two, relying, without_statistics

from renorm.findings import SEVERITIES, judge
from renorm.findings.rules.dependence import combined
from renorm.measure.records import (
    MODEL,
    BatchDependence,
    BatchNoise,
    ChannelHealth,
    CompositionShift,
    Converted,
    CrossExampleInfluence,
    EffectiveCount,
    LayerFacts,
    LimitsAhead,
    OutputGap,
    RankSpread,
    Survey,
    TileConsistency,
    TrainEvalGap,
)


def test_a_healthy_model_has_no_finding() -> None:
    assert judge(healthy()) == ()


@pytest.mark.parametrize("name", SICK)
def test_the_cause_is_found(name: str) -> None:
    expected, survey = SICK[name]
    findings = judge(survey)
    assert (findings[0].id, findings[0].severity) == (name, expected)


def counts(examples: float, effective: float, seen: float) -> Survey:
    survey = ill(EffectiveCount, "7", examples=examples, effective=effective)
    return changed(survey, BatchNoise, "7", d_rms=seen)


# (a survey beyond the threshold, one that is not), with severities of the finding in both
SIDES: list[tuple[str, Survey, str | None, Survey, str | None]] = [
    ("small_batch", counts(4, 24, 0.2), "warning", counts(4, 26, 0.097), None),
    ("small_batch", counts(16, 0.65, 0.31), "warning", counts(16, 0.8, 0.28), None),
    ("small_batch", counts(2, 7.9, 0.26), "error", counts(2, 8.1, 0.26), "warning"),
    ("small_batch", counts(4, 0.9, 0.6), "error", counts(4, 1.1, 0.6), "warning"),
    ("small_batch", counts(16, 0.65, 0.31), "warning", counts(16, 10, 0.31), None),
    ("stale_statistics", stale((0.05, 0.1, 0.26), staleness=0.2), "warning",
     stale((0.05, 0.1, 0.24), staleness=0.2), None),
    ("stale_statistics", stale((0.05, 0.1, 0.2), staleness=0.26), "warning",
     stale((0.05, 0.1, 0.2), staleness=0.24), None),
    ("stale_statistics", stale((0.1, 0.1, 0.6), loss_staleness=(0.005, 0.001)), "error",
     stale((0.1, 0.1, 0.6), loss_staleness=(0.005, 0.002)), "warning"),
    ("stale_statistics", stale((0.1, 0.1, 0.6), staleness=0.51), "error",
     stale((0.1, 0.1, 0.6), staleness=0.49), "warning"),
    ("stale_statistics", changed(stale((0.1, 0.1, 0.3)), TrainEvalGap, noise=0.6), "error",
     changed(stale((0.1, 0.1, 0.3)), TrainEvalGap, noise=0.8), None),
    ("shifted_domain", stale((0.5, 0.6, 0.6)), "error", stale((0.2, 0.6, 0.6)), None),
    ("never_updated", never_updated(), "error",
     changed(never_updated(), LayerFacts, updates=1), None),
    ("never_updated", changed(never_updated(), OutputGap, loss_staleness=(0.02, 0.001)), "warning",
     changed(never_updated(), OutputGap, loss_staleness=(-0.02, 0.001)), "note"),
    ("momentum_convention", momentum(0.5), "error", momentum(0.49), None),
    ("momentum_convention", momentum(), "error",
     changed(momentum(), OutputGap, staleness=0.2), "warning"),
    ("single_value", ill(EffectiveCount, least=1), "error", ill(EffectiveCount, least=2), None),
    ("dependent_batches", ill(BatchDependence, "7", ratio=2.1, p_more=0.001), "warning",
     ill(BatchDependence, "7", ratio=1.9, p_more=0.001), "note"),
    ("dependent_batches", ill(BatchDependence, "7", ratio=1.31, p_more=0.001), "note",
     ill(BatchDependence, "7", ratio=1.29, p_more=0.001), None),
    ("dependent_batches", ill(BatchDependence, "7", ratio=2.1, p_more=0.001), "warning",
     ill(BatchDependence, "7", ratio=2.1, p_more=0.1), None),
    ("dependent_batches", ill(BatchDependence, ratio=2.1, p_more=0.001, examples=1070), "warning",
     ill(BatchDependence, ratio=2.1, p_more=0.001, examples=1080), "note"),  # 16 of 67 and 68
    ("dependent_batches", ill(BatchDependence, ratio=2.1, p_more=0.0049), "warning",
     ill(BatchDependence, ratio=2.1, p_more=0.0051), None),
    ("dependent_batches", ill(BatchDependence, ratio=8.1, p_more=0.002), "error",
     ill(BatchDependence, ratio=7.9, p_more=0.002), "warning"),
    ("dependent_batches", ill(BatchDependence, ratio=0.6, p_less=0.002), "note",
     ill(BatchDependence, ratio=0.8, p_less=0.002), None),
    ("batch_leak", ill(CrossExampleInfluence, MODEL, influence=0.18), "note",
     ill(CrossExampleInfluence, MODEL, influence=0.17), None),
    ("batch_leak", ill(CrossExampleInfluence, MODEL, influence=0.5), "note",
     ill(CrossExampleInfluence, MODEL, influence=0.5, by_running=0.5), None),
    ("batch_leak", relying(), "warning", changed(relying(), OutputGap, loss_noise=(-0.004, 0.002)),
     None),
    ("batch_leak", relying(), "warning",
     changed(relying(), OutputGap, loss_noise=(-0.0009, 0.0001)), None),
    ("batch_leak", relying(), "warning",
     changed(relying(), OutputGap, loss_gap=(0.001, 0.001)), None),
    ("composition_overfit", ill(CompositionShift, shift=0.011, error=0.002), "error",
     ill(CompositionShift, shift=0.009, error=0.002), "warning"),
    ("composition_overfit", ill(CompositionShift, shift=0.0025, error=0.001), "warning",
     ill(CompositionShift, shift=0.0025, error=0.0011), None),
    ("composition_overfit", ill(CompositionShift, shift=0.0021, error=1e-4), "warning",
     ill(CompositionShift, shift=0.0019, error=1e-4), None),
    ("dead_channels", ill(ChannelHealth, "4", negative=(0, 1)), "warning",
     ill(ChannelHealth, "4", negative=(0,)), "note"),
    ("dead_channels", ill(ChannelHealth, "4", dead=tuple(range(16))), "warning",
     changed(ill(ChannelHealth, "4", dead=tuple(range(16))), LayerFacts, updates=0), "note"),
    ("eps_dominated", ill(ChannelHealth, eps_dominated=(0, 1)), "warning",
     ill(ChannelHealth, eps_dominated=(0,)), "note"),
    ("saturated_channels", ill(ChannelHealth, saturated=tuple(range(15))), "warning",
     ill(ChannelHealth, saturated=tuple(range(14))), "note"),
    ("non_finite", ill(ChannelHealth, headroom=0.26), "warning",
     ill(ChannelHealth, headroom=0.24), None),
    ("mixed_modes", ill(LayerFacts, "4", training=False), "warning",
     ill(LayerFacts, "4", training=False, learns=False), "note"),
    ("mixed_modes", ill(LayerFacts, "4", training=False), "warning",
     ill(LayerFacts, "4", training=False, statistics="frozen"), None),
    ("redundant_bias", ill(LayerFacts, source="3", source_bias=True), "note",
     ill(LayerFacts, source="3", source_bias=False), None),
    ("norm_lost", beside(healthy(), Converted("4", "BatchRenorm2d", "", True, False)), "error",
     beside(healthy(), Converted("4", "BatchRenorm2d", "BatchNorm2d", True, False)), "warning"),
    ("norm_lost", beside(healthy(), Converted("4", "BatchNorm2d", "", False, False)), "warning",
     beside(healthy(), Converted("4", "BatchNorm2d", "BatchRenorm2d", False, True)), None),
    ("ranks_differ", beside(healthy(), RankSpread("4", 2, 0.1, 0.26)), "warning",
     beside(healthy(), RankSpread("4", 2, 0.1, 0.24)), "note"),
    ("ranks_differ", beside(healthy(), RankSpread("4", 2, 1.1, 0.2)), "error",
     beside(healthy(), RankSpread("4", 2, 0.0, 0.0)), None),
    ("accumulation", beside(healthy(), setting(accumulation=2)), "note",
     beside(healthy(), setting(accumulation=1)), None),
    ("train_mode_export", beside(healthy(), setting(purpose="export")), "error",
     beside(ill(LayerFacts, training=False), setting(purpose="export")), None),
    ("limits_never_open", beside(renormed(healthy()), LimitsAhead("1", 9, 1.0, 0.09)), "warning",
     beside(renormed(healthy()), LimitsAhead("1", 9, 1.0, 0.11)), None),
    ("limits_never_open", beside(renormed(healthy()), LimitsAhead("1", 9, 1.09, 0.0)), "warning",
     beside(renormed(healthy(), limits="r_max 1, d_max 0"), LimitsAhead("1", 9, 1.0, 0.0)), None),
    ("tile_artifacts", without_statistics(), "error",
     changed(without_statistics(), TileConsistency, interior=0.2), "warning"),
    ("tile_artifacts", ill(TileConsistency, interior=0.11), "note",
     ill(TileConsistency, interior=0.09), None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sick", "expected", "other", "otherwise"), SIDES)
def test_both_sides_of_a_threshold(
    name: str, sick: Survey, expected: str | None, other: Survey, otherwise: str | None
) -> None:
    assert severity(sick, name) == expected
    assert severity(other, name) == otherwise


@pytest.mark.parametrize(
    ("entries", "given", "expected"),
    [
        ({"r_max": 3.0, "d_max": 5.0, "updates": 9}, "finetuning", "warning"),
        ({"r_max": 3.0, "d_max": 5.0, "updates": 9}, "training", None),
        ({"r_max": 1.0, "d_max": 0.0, "updates": 9}, "finetuning", None),
        ({"r_max": 3.0, "d_max": 5.0, "updates": 0}, "finetuning", None),
        ({"r_max": 1.5, "d_max": 0.5, "updates": 9, "limits": "r_max 1.5, d_max 0.5"},
         "finetuning", None),
        ({"r_max": math.inf, "d_max": math.inf, "updates": 9, "limits": "limits by own"},
         "finetuning", "warning"),
    ],
)  # fmt: skip
def test_limits_at_the_start_of_fine_tuning(entries: Any, given: str, expected: Any) -> None:
    survey = beside(renormed(healthy(), **entries), setting(purpose=given))
    assert severity(survey, "limits_open_early") == expected


def test_batch_renorm_with_a_schedule_is_told_no_small_batch() -> None:
    assert severity(renormed(of_two()), "small_batch") is None
    closed = renormed(of_two(), limits="r_max 1, d_max 0")
    assert severity(closed, "small_batch") == "error"


def test_batch_renorm_corrects_dependent_batches() -> None:
    survey = ill(BatchDependence, ratio=11.0, p_more=0.002)
    assert severity(survey, "dependent_batches") == "error"
    one = found(renormed(survey), "dependent_batches")
    assert one is not None
    assert (one.severity, one.code) == ("warning", "")


def test_processes_that_share_a_batch_have_more_examples() -> None:
    survey = changed(of_two(), LayerFacts, sync="batch")
    assert severity(beside(survey, setting(processes=16)), "small_batch") is None
    assert severity(beside(of_two(), setting(processes=16)), "small_batch") == "error"


def test_layers_in_eval_mode_are_not_told_of_batches_unless_all_are() -> None:
    survey = changed(counts(2, 1.0, 0.7), LayerFacts, "7", training=False)
    assert severity(survey, "small_batch") is None
    assert severity(changed(survey, LayerFacts, training=False), "small_batch") == "error"


def test_figures_that_could_not_be_told_are_no_findings() -> None:
    survey = ill(TrainEvalGap, gap=None, staleness=None, noise=None, shift=None, log_ratio=None)
    survey = changed(survey, BatchNoise, log_r=None, d=None, log_r_rms=None, d_rms=None)
    survey = changed(survey, BatchDependence, ratio=None, p_more=None, p_less=None)
    survey = changed(survey, EffectiveCount, effective=None, examples=None)
    survey = changed(survey, CrossExampleInfluence, influence=None, own=None, by_running=None)
    survey = changed(survey, CompositionShift, shift=None, error=None, loss_composed=None)
    survey = changed(survey, TileConsistency, interior=None, difference=None)
    assert judge(changed(survey, OutputGap, staleness=None, loss_staleness=(None, None))) == ()


@pytest.mark.parametrize("batches", [2, 3, 4, 8, 30])
def test_few_batches_need_a_clearer_difference(batches: int) -> None:
    quantile = float(stats.t.ppf(stats.norm.cdf(3), batches - 1))
    for factor, expected in ((1.02, "error"), (0.93, "warning")):
        pair = (0.005, 0.005 / quantile / factor)
        survey = stale((0.1, 0.4, 0.6), loss_staleness=pair, batches=batches)
        assert severity(survey, "stale_statistics") == expected


def test_without_a_loss_nothing_is_certain() -> None:
    silent: dict[str, Any] = {
        "loss_running": None, "loss_population": None, "loss_staleness": (None, None)
    }  # fmt: skip
    assert severity(stale((0.1, 0.4, 0.6), **silent), "stale_statistics") == "warning"
    strong = stale((0.1, 0.4, 0.6), **silent, staleness=1.1)
    assert severity(strong, "stale_statistics") == "error"
    never = changed(never_updated(), OutputGap, **silent)
    assert severity(never, "never_updated") == "warning"


@pytest.mark.parametrize(("loss", "expected"), [(0.002, "warning"), (0.0005, "note")])
def test_statistics_that_have_not_settled_yet(loss: float, expected: str) -> None:
    survey = stale((0.6, 0.6, 0.6), loss_staleness=(loss, 0.01))
    survey = changed(survey, LayerFacts, updates=10)
    assert severity(survey, "stale_statistics") == expected
    assert severity(changed(survey, LayerFacts, updates=99), "shifted_domain") == "warning"


def test_the_p_value_of_many_layers_that_say_the_same_is_theirs() -> None:
    assert combined([0.002] * 53) == pytest.approx(0.002)
    assert combined([0.002] + [0.5] * 52) > 0.05  # one layer of 53 may be so by chance


def test_frozen_statistics_that_cost_nothing_are_worth_a_note() -> None:
    # of a loss of 0.01 by population statistics
    costs = ((0.0, "note"), (0.0009, "note"), (0.0011, "warning"), (0.0026, "error"))
    for cost, expected in costs:
        survey = stale((0.1, 0.4, 0.6), loss_staleness=(cost, 0.0001))
        frozen = changed(survey, LayerFacts, statistics="frozen")
        assert severity(frozen, "stale_statistics") == expected
        assert severity(survey, "stale_statistics") != "note"


def test_layers_without_statistics_make_batches_alike() -> None:
    survey = ill(BatchDependence, ratio=0.1, p_less=0.002)
    assert severity(survey, "dependent_batches") == "note"
    survey = changed(survey, LayerFacts, "1", statistics="none")
    assert severity(survey, "dependent_batches") is None


def test_momentum_of_0_is_stale_before_it_is_never_updated() -> None:
    survey = changed(stale((0.2, 0.5, 0.6)), LayerFacts, momentum=0.0)
    assert {one.id for one in judge(survey)[:2]} == {"stale_statistics", "never_updated"}


def test_layers_are_named_the_worst_first() -> None:
    one = found(stale((0.1, 0.6, 0.4)), "stale_statistics")
    assert one is not None
    assert one.layers == ("4", "7")


def test_severities_of_the_causes_are_among_those_there_are() -> None:
    assert {expected for expected, _ in SICK.values()} <= set(SEVERITIES)
