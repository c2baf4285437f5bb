"""Limits over a range of steps."""

from typing import Any

import numpy as np
import pytest

from renorm import limits
from renorm.errors import ArgumentError
from renorm.measure import schedule


@pytest.mark.parametrize("made", [limits.paper(), limits.crossq(), limits.fixed(np.inf, 0)])
def test_every_step_is_what_a_layer_gets(made: limits.Limits) -> None:
    steps = range(0, 120_000, 997)
    drawn = schedule(made, steps)
    assert drawn.steps.tolist() == list(steps)
    pairs = list(zip(drawn.r_max.tolist(), drawn.d_max.tolist(), strict=True))
    assert pairs == [made(step) for step in steps]


def test_a_number_of_steps_begins_at_0() -> None:
    assert schedule(limits.over(4), 3).steps.tolist() == [0, 1, 2]


def test_a_function_gets_tensors_as_on_an_accelerator() -> None:
    drawn = schedule(lambda step: (1 + (step / 10).clamp(max=2), 5.0), [0, 10, 40])
    assert drawn.r_max.tolist() == [1.0, 2.0, 3.0]
    assert drawn.d_max.tolist() == [5.0] * 3


@pytest.mark.parametrize("steps", [0, -3, [], [3, -1], 2.5, "many", None], ids=str)
def test_bad_steps_are_named(steps: Any) -> None:
    with pytest.raises(ArgumentError, match="steps"):
        schedule(limits.paper(), steps)


def test_limits_that_cannot_be_called_are_named() -> None:
    bad: Any = (3, 5)
    with pytest.raises(ArgumentError, match=r"\(3, 5\)"):
        schedule(bad, 10)
