"""Errors of a user's model and loss."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from renorm.errors import ArgumentError
from renorm.measure import survey
from renorm.measure.user_calls import told_forward


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


BATCHES = [(torch.randn(8, 3), torch.randint(4, (8,))) for _ in range(3)]


def test_a_loss_of_the_target_is_told_what_it_gets() -> None:
    with pytest.raises(TypeError, match="must be Tensor, not list") as caught:
        survey(model(), [list(pair) for pair in BATCHES], nn.CrossEntropyLoss())
    (note,) = caught.value.__notes__
    batch = "the batch a list of (float32 (8, 3) on cpu, int64 (8,) on cpu)"
    for part in ("the output is float32 (8, 4) on cpu", batch, "batch: F.cross_entropy("):
        assert part in note


def test_a_loss_for_each_example_is_refused() -> None:
    def loss(output: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(output, batch[1], reduction="none")

    with pytest.raises(ArgumentError, match=r"one number.*shape \(8,\)\. Return its mean"):
        survey(model(), BATCHES, loss)


@pytest.mark.parametrize(
    ("batch", "how"),
    [
        (torch.zeros(2, 5), "model(batch): the batch is float32 (2, 5) on cpu, the model float32"),
        ((torch.zeros(2, 5),), "model(batch[0]): the batch is a tuple of (float32 (2, 5) on cpu)"),
        ({"y": 1}, "model(**batch): the batch is a dict with 'y': int"),
        ([0, *"abcd"], "a list of (int, str, str, str and 1 more)"),
    ],
)
def test_a_batch_that_does_not_fit_is_described(batch: Any, how: str) -> None:
    with pytest.raises((RuntimeError, TypeError)) as caught:
        told_forward(None)(model(), batch)
    assert how in caught.value.__notes__[0]


def test_a_forward_of_the_users_own_is_named() -> None:
    with pytest.raises(KeyError) as caught:
        told_forward(lambda model, batch: model(batch["image"]))(nn.ReLU(), {"x": None})
    assert (
        "renorm called forward(model, batch): the batch is a dict with 'x': None."
        in (caught.value.__notes__[0])
    )
