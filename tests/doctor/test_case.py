"""What a user's function may return."""

from typing import Any

import pytest
import torch
from doctored import loss, model, rows

from renorm.doctor import Case
from renorm.doctor.case import case_of
from renorm.errors import ArgumentError

NET, BATCHES = model(), rows()
OPTIMIZER = torch.optim.SGD(NET.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Case(NET, BATCHES, purpose="export"), Case(NET, BATCHES, purpose="export")),
        ((NET, BATCHES), Case(NET, BATCHES)),
        ((NET, BATCHES, loss), Case(NET, BATCHES, loss)),
        ((NET, BATCHES, loss, OPTIMIZER), Case(NET, BATCHES, loss, OPTIMIZER)),
        (
            {"model": NET, "batches": BATCHES, "steps": 7, "accumulation": 2},
            Case(NET, BATCHES, steps=7, accumulation=2),
        ),
    ],
    ids=["case", "pair", "triple", "four", "dict"],
)
def test_forms(given: Any, expected: Case) -> None:
    assert case_of(given, "my.py:case") == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "my.py:case returned None. It has to return a renorm.doctor.Case"),
        (NET, "returned a Sequential"),
        ((NET,), "returned a tuple of 1"),
        ((NET, BATCHES, loss, OPTIMIZER, 5), "returned a tuple of 5"),
        ({"model": NET}, "has no batches"),
        ({"model": NET, "data": BATCHES}, "has no batches, and has data"),
    ],
)
def test_nonsense_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        case_of(given, "my.py:case")


def test_arguments_are_those_of_diagnose() -> None:
    arguments = Case(NET, BATCHES, loss).arguments()
    assert arguments["model"] is NET
    assert arguments["loss"] is loss
    assert arguments["purpose"] == "training"
