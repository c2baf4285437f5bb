"""The pure function: what it returns, and what it refuses."""

from typing import Any

import pytest
import torch

from renorm.errors import ArgumentError
from renorm.functional import cross_iteration_batch_norm

X, LAGS = torch.randn(4, 3, 2, 2), torch.rand(3, 5)


def test_without_lags_it_is_batch_norm() -> None:
    none = torch.zeros(3, 0)
    y, mean, var = cross_iteration_batch_norm(X, none, none)
    torch.testing.assert_close(y, torch.nn.functional.batch_norm(X, None, None, training=True))
    torch.testing.assert_close(mean, X.mean((0, 2, 3)))
    torch.testing.assert_close(var, X.var((0, 2, 3), correction=0))


def test_a_negative_variance_is_taken_as_none() -> None:
    found = cross_iteration_batch_norm(X, LAGS, -LAGS)
    for a, b in zip(found, cross_iteration_batch_norm(X, LAGS, 0 * LAGS), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": X.long()}, "x must be floating point"),
        ({"x": X[:0]}, "not empty"),
        ({"borrowed_mean": LAGS[:2]}, r"must be \(C, L\) = \(3, L\)"),
        ({"borrowed_var": LAGS[:, :2]}, "one column an iteration"),
        ({"weight": torch.ones(2)}, r"weight must have shape \(3,\), got \(2,\)"),
        ({"bias": torch.ones(3, 1)}, "bias must have shape"),
        ({"eps": 0.0}, "eps must be positive, got 0"),
        ({"weight": torch.ones(3, device="meta")}, "on one device, got cpu, meta"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"x": X, "borrowed_mean": LAGS, "borrowed_var": LAGS} | changed
    with pytest.raises(ArgumentError, match=message):
        cross_iteration_batch_norm(**given)
