"""Some of the planted diseases, and healthy controls: what ``planted_diseases.py`` runs all of."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SICK = (
    "sorted_labels",
    "tiny_momentum",
    "parameters_alone",
    "nan_buffer",
    "tiny_inputs",
    "train_mode_export",
)
WELL = ("plain", "scaled_table")


@pytest.fixture(scope="module")
def suite() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        from planted import suite  # pyright: ignore[reportMissingImports]

        yield suite
    for name in [n for n in sys.modules if n.partition(".")[0] == "planted"]:
        del sys.modules[name]


@pytest.fixture(scope="module", params=SICK)
def outcome(suite: Any, request: pytest.FixtureRequest) -> Any:
    found, _ = suite.examine(suite.CASES[request.param], suite.Ground("digits"))
    return found


def test_planted_cause_is_among_the_first_two(outcome: Any) -> None:
    assert outcome.planted in [found for found, _ in outcome.found[:2]]
    assert outcome.hit


def test_planted_cause_costs_accuracy(outcome: Any) -> None:
    assert outcome.sick < outcome.well


@pytest.mark.parametrize("name", WELL)
def test_nothing_is_an_error_where_nothing_was_planted(suite: Any, name: str) -> None:
    outcome, _ = suite.examine(suite.CASES[name], suite.Ground("digits"))
    assert "error" not in [severity for _, severity in outcome.found]
    assert outcome.hit


def test_case_is_missed_where_the_planted_finding_comes_third(suite: Any) -> None:
    case = suite.CASES["shifted_domain"]
    first = ("small_batch", "error"), ("batch_leak", "warning")
    assert not suite.is_hit(case, (*first, ("shifted_domain", "warning")))
    assert suite.is_hit(case, (first[0], ("stale_statistics", "warning")))


def test_control_is_missed_by_an_error_alone(suite: Any) -> None:
    control = suite.CASES["plain"]
    assert suite.is_hit(control, (("redundant_bias", "note"), ("small_batch", "warning")))
    assert not suite.is_hit(control, (("redundant_bias", "note"), ("small_batch", "error")))


def test_there_are_enough_cases_and_every_cause_has_one(suite: Any) -> None:
    assert len(suite.DISEASES) >= 18
    assert len(suite.CONTROLS) >= 8
    assert len(suite.CASES) == len(suite.DISEASES) + len(suite.CONTROLS)
    planted = {case.planted for case in suite.DISEASES}
    assert planted >= {
        "stale_statistics",
        "shifted_domain",
        "small_batch",
        "single_value",
        "dependent_batches",
        "batch_leak",
        "composition_overfit",
        "dead_channels",
        "eps_dominated",
        "non_finite",
        "momentum_convention",
        "never_updated",
        "mixed_modes",
        "redundant_bias",
        "norm_lost",
        "accumulation",
        "train_mode_export",
        "limits_open_early",
        "limits_never_open",
    }
