import io

import pytest
from rich.console import Console

from renorm.cli.progress import Display, Stages, time_left
from renorm.lab.experiment import Progress
from report.constructed import PLAIN, finished

START = Progress(0, 3, None, None)
LATER = Progress(1, 3, 61.5, finished(PLAIN, 0.987))


def shown(terminal: bool, *steps: Progress) -> str:
    out = io.StringIO()
    with Display(Console(file=out, width=100, force_terminal=terminal)) as display:
        for step in steps:
            display(step)
    return out.getvalue()


def test_away_from_a_terminal_each_run_is_a_line() -> None:
    lines = shown(False, START, LATER).splitlines()
    assert lines == ["1 of 3: batch_norm, iid, seed 0: 98.7 % (1 min 2 s left)"]


def test_on_a_terminal_there_is_a_bar() -> None:
    text = shown(True, START, LATER)
    assert "1/3" in text
    assert "1 min 2 s left" in text
    assert "batch_norm, iid, seed 0: 98.7 %" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "time left: measuring"),
        (0.0, "0 s left"),
        (0.2, "1 s left"),
        (59.5, "1 min 0 s left"),
        (125.0, "2 min 5 s left"),
    ],
)
def test_time_left_in_words(seconds: float | None, text: str) -> None:
    assert time_left(seconds) == text


def test_stages_have_an_estimate_each() -> None:
    out = io.StringIO()
    times = iter([0.0, 2.0, 4.0, 6.0])
    with Stages(Console(file=out, width=100, force_terminal=True), lambda: next(times)) as stages:
        said = []
        for done in (1, 2, 3, 4):
            stages("train mode", done, 4)
            said.append(stages._bar.tasks[0].fields["left"])
    assert said == ["time left: measuring", "4 s left", "2 s left", "0 s left"]
    assert "4/4" in out.getvalue()


def test_away_from_a_terminal_a_stage_is_two_lines() -> None:
    out = io.StringIO()
    with Stages(Console(file=out, width=100)) as stages:
        for stage, total in (("train mode", 3), ("three modes", None)):
            for done in (1, 2, 3):
                stages(stage, done, total)
    assert out.getvalue().splitlines() == [
        "1 of 3: train mode (time left: measuring)",
        "3 of 3: train mode (0 s left)",
        "1: three modes",
    ]
