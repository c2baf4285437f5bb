"""Findings as plain text."""

import ast
from pathlib import Path

import pytest
from doctored import finding, surveyed

from renorm.doctor import Diagnosis
from renorm.findings import text
from renorm.measure.records import MODEL, FixTrial, Note

HEIGHT, WIDTH = 24, 80


def test_what_is_shown_of_a_few() -> None:
    found = [finding("error", layers=("stem", "a", "b", "c", "d")), finding("note")]
    assert str(Diagnosis(surveyed(), tuple(found))) == (
        "Net: 0 normalization layers, 4 batches of 32 examples in all, depth standard\n"
        "1 error, 1 note.\n"
        "\n"
        "error    Running statistics are 2.5 deviations off\n"
        "         stale_statistics, in stem, a, b and 2 more\n"
        "         Do: Calibrate the model.\n"
        "note     Running statistics are 2.5 deviations off\n"
        "         stale_statistics, in 1, 5"
    )


@pytest.mark.parametrize("count", range(0, 30, 3))
def test_any_number_fits_a_screen_with_the_worst_first(count: int) -> None:
    trials = tuple(
        FixTrial(MODEL, f"fix {i}", "", 5, (0,), (1.0,), (0.1 * i,), 1.0, "") for i in range(3)
    )
    long = "very " * 80
    severities = ["error"] * (count // 2) + ["warning"] * (count - count // 2)
    found = [
        finding(one, title=f"{i} is {long}", advice=long, layers=(long,))
        for i, one in enumerate(severities)
    ]
    lines = text.render(surveyed(records=trials), found).splitlines()
    assert len(lines) < HEIGHT
    assert max(map(len, lines)) <= WIDTH
    assert any("0 is very" in line for line in lines) == (count > 0)
    assert any(line.startswith(f"and {count - 3} more: stale") for line in lines) == (count > 3)


def test_fixes_are_told_in_their_order_with_what_they_gain() -> None:
    trials = (
        FixTrial(MODEL, "batch_renorm", "", 5, (0, 1), (0.5, 0.5), (0.5, 0.5), 1.1, ""),
        FixTrial(MODEL, "as it is", "", 5, (0, 1), (1.0, 1.0), (0.0, 0.0), 1.0, ""),
        FixTrial(MODEL, "calibrate", "", 0, (0, 1), (0.9, 0.7), (0.1, 0.3), None, ""),
        FixTrial(MODEL, "frozen", "", 5, (0, 1), (1.5, None), (-0.5, None), 1.0, ""),
        FixTrial(MODEL, "cross_iteration", "", 5, (), (), (), None, "It does not fit."),
    )
    shown = " ".join(text.render(surveyed(records=trials), []).split())
    assert "takes off the loss: batch_renorm +0.5, calibrate +0.2, frozen -0.5" in shown


def test_what_was_not_measured_is_named() -> None:
    notes = (Note(MODEL, "tile_consistency", "No images."), Note("1", "survey", "Not reached."))
    shown = text.render(surveyed(records=notes), [])
    assert shown.endswith("Not measured, or in part: tile_consistency, survey")


def test_verdicts() -> None:
    assert text.verdict(surveyed(), []) == "Healthy: nothing was found."
    assert text.verdict(surveyed(), [finding("note")]) == "Healthy, but for 1 note."
    interrupted = surveyed(interrupted=True)
    assert text.verdict(interrupted, []) == "Nothing was found so far."
    assert text.verdict(interrupted, [finding("error")]) == "1 error so far."


def test_it_imports_neither_torch_nor_rich() -> None:
    tree = ast.parse(Path(text.__file__).read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert not {name.split(".")[0] for name in names} & {"torch", "rich", "numpy"}
