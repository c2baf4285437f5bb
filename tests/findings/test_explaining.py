"""Causes come before what follows from them."""

from dataclasses import replace

import pytest
from charts import beside, changed, healthy, setting, stale
from sickness import SICK, momentum, never_updated, of_two, open_early, sorted_labels

from renorm.findings import Finding, judge
from renorm.findings.explaining import explained
from renorm.measure.records import ChannelHealth, EffectiveCount, LayerFacts, Survey


def finding(name: str, severity: str, weight: float) -> Finding:
    return Finding(name, severity, name, (), (), "", "", "", "", "", weight)


def order(*findings: Finding) -> list[str]:
    found = explained(findings)
    return [f"{one.id} {one.severity} {one.weight:g}" for one in found]


def test_a_cause_is_raised_to_what_follows() -> None:
    stale, cause = (
        finding("stale_statistics", "error", 5),
        finding("dependent_batches", "warning", 2),
    )
    expected = ["stale_statistics error 4.5", "dependent_batches error 5"]
    assert order(stale, cause) == expected


def test_what_follows_is_behind_its_cause_but_keeps_its_severity() -> None:
    small, cause = finding("small_batch", "warning", 9), finding("dependent_batches", "error", 2)
    assert order(small, cause) == ["small_batch warning 1.8", "dependent_batches error 2"]


def test_the_first_of_two_causes_is_raised() -> None:
    stale = finding("stale_statistics", "error", 5)
    causes = finding("dependent_batches", "warning", 2), finding("non_finite", "error", 1000)
    found = explained([stale, *causes])
    assert found[1:] == causes
    assert found[0].weight == 5


def test_a_note_explains_nothing_and_what_is_alone_stays() -> None:
    stale, note = finding("stale_statistics", "error", 5), finding("never_updated", "note", 3)
    assert explained([stale, note]) == (stale, note)
    assert explained([]) == ()


@pytest.mark.parametrize(
    ("survey", "first"),
    [
        (sorted_labels(), "dependent_batches"),
        (changed(sorted_labels(), EffectiveCount, examples=4.0, effective=1.0),
         "dependent_batches"),
        (of_two(), "small_batch"),
        (momentum(), "momentum_convention"),
        (never_updated(), "never_updated"),
        (changed(never_updated(), ChannelHealth, "7", bad_statistics=(0,)), "non_finite"),
        (changed(of_two(), EffectiveCount, least=1, single=0.1), "single_value"),
        (beside(of_two(), setting(accumulation=8)), "accumulation"),
        (beside(changed(healthy(), LayerFacts, "4", training=False), setting(purpose="export")),
         "train_mode_export"),
        (changed(open_early(stale((0.1, 0.3, 0.6))), ChannelHealth, "7", dead=(1, 2, 3)),
         "limits_open_early"),
        (changed(stale((0.1, 0.3, 0.6)), LayerFacts, "7", training=False), "mixed_modes"),
    ],
)  # fmt: skip
def test_the_cause_is_first(survey: Survey, first: str) -> None:
    assert judge(survey)[0].id == first


@pytest.mark.parametrize("first", [0.5, 0.6, 1.0])
def test_moved_weights_are_named_beside_other_data(first: float) -> None:
    found = [one.id for one in judge(stale((0.6 * first, 0.6, 0.6)))]
    expected = ["stale_statistics", "shifted_domain"]
    assert found[:2] == (expected if first < 0.55 else expected[::-1])


def test_the_order_does_not_depend_on_that_of_the_records() -> None:
    for _, survey in SICK.values():
        layers = replace(
            survey, records=tuple(sorted(survey.records, key=lambda r: type(r).__name__))
        )
        assert [one.id for one in judge(layers)] == [one.id for one in judge(survey)]
