import pytest

from renorm.bench.registry import Target
from renorm.bench.statistics import geometric_mean, judged, met, verdicts


def test_geometric_mean() -> None:
    assert geometric_mean([0.25, 1.0, 4.0]) == pytest.approx(1.0)
    assert geometric_mean([0.5]) == 0.5


@pytest.mark.parametrize(
    ("value", "target", "at_least", "result"),
    [
        (0.45, 0.45, False, True),
        (0.4549, 0.45, False, True),  # shown as 0.45
        (0.456, 0.45, False, False),
        (8.0, 8.0, True, True),
        (7.99, 8.0, True, False),
        (float("nan"), 1.0, False, False),
    ],
)
def test_met(value: float, target: float, at_least: bool, result: bool) -> None:
    assert met(value, target, at_least) is result


def test_the_worst_is_the_largest_ratio_or_for_others_the_smallest() -> None:
    ratios = {"a": 0.4, "b": 0.9}
    assert verdicts(ratios, Target(0.45, 0.9)) == [
        "geometric mean 0.60 (target at most 0.45: not met)",
        "worst, b, 0.90 (target at most 0.9: met)",
    ]
    assert verdicts({"a": 4.0, "b": 16.0}, Target(8.0, at_least=True)) == [
        "geometric mean 8.00 (target at least 8: met)",
        "worst, a, 4.00",
    ]


def test_without_a_target_there_is_no_verdict() -> None:
    assert judged("ratio", 1.234, None) == "ratio 1.23"
