import io

import pytest
from rich.console import Console

from renorm.cli.progress import Display, time_left
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
