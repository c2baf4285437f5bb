import pytest

from renorm.report.statistics import Estimate
from renorm.report.wording import Unit, last_line, unit_for


@pytest.mark.parametrize(
    ("scores", "decimals"),
    [([0.5], 4), ([-312.5, 20.0], 1), ([98765.0], 0), ([1e-12], 8), ([0.0], 3), ([], 3)],
)
def test_plain_units_have_four_figures_of_the_largest_score(
    scores: list[float], decimals: int
) -> None:
    assert unit_for("return", False, scores).decimals == decimals


def test_percentages_have_one_decimal() -> None:
    unit = unit_for("accuracy", True, [0.5])
    assert (unit.decimals, unit.shown(0.5), unit.heading) == (1, 50, "accuracy, %")


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (None, False, "-"),
        (Estimate(-0.04, None, 1), False, "0.0"),
        (Estimate(0.04, None, 1), True, "+0.0"),
        (Estimate(-3.21, 1.0, 3), True, "-3.2 ± 1.0"),
        (Estimate(0.04, 0.05, 3), False, "0.0 ± 0.1"),
        (Estimate(0.04, 0.01, 3), False, "0.04 ± 0.01"),
        (Estimate(1e-12, 0.0, 3), False, "0.00000000 ± 0.00000000"),
    ],
)
def test_a_figure_is_never_minus_zero_and_a_clear_one_is_not_rounded_away(
    value: Estimate | None, signed: bool, text: str
) -> None:
    assert Unit("accuracy", True).figure(value, signed) == text


@pytest.mark.parametrize(
    ("traceback", "line"),
    [("Traceback\n  a\nE: b\n\n", "E: b"), ("E: b", "E: b"), ("", "no message")],
)
def test_the_last_line_of_a_traceback(traceback: str, line: str) -> None:
    assert last_line(traceback) == line
