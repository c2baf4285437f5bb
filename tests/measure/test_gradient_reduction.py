"""Theorem 4.1 as an equality: by hand, and of layers in models."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from renorm import BatchRenorm1d, BatchRenorm2d, BatchRenormAct2d, freeze, limits
from renorm.errors import ArgumentError
from renorm.measure import gradient_reduction, saving


def cubic(output: Tensor, batch: Any) -> Tensor:
    return output.pow(3).mean() + output.mean()


def test_three_values_by_hand() -> None:
    # x = (-1, 0, 1) with eps = 1 / 3: var = 2 / 3, sigma_B = 1 and x_hat = x; g = (3, 0, 0)
    layer = nn.BatchNorm1d(1, eps=1 / 3).double()
    nn.init.constant_(layer.weight, 2)
    x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    (found,) = gradient_reduction(layer, x, lambda y, batch: 3 * y[0].sum())
    assert (found.layer, found.output) == ("(model)", (9.0,))
    # gamma^2 (9 - 3^2 / 3 - (1 + 1 / 3) 3^2 / 3)
    expected = {"scaled": 36, "mean": 12, "projection": 16, "measured": 8, "predicted": 8}
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx((value,), rel=1e-14)
    assert saving.from_dict(saving.to_dict(found)) == found


def settled(layer: Any) -> Any:
    """With statistics off the batch's, and weights off their start."""
    nn.init.uniform_(layer.running_mean, -1, 1)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


LAYERS = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "hardly any eps": lambda: nn.BatchNorm2d(4, eps=1e-14),
    "large eps": lambda: nn.BatchNorm2d(4, eps=0.7),
    "no affine": lambda: nn.BatchNorm2d(4, affine=False),
    "batch renorm": lambda: BatchRenorm2d(4, limits=limits.fixed(1.2, 0.3), eps=0.1),
    "unclipped": lambda: BatchRenorm2d(4, limits=limits.fixed(100, 100)),
    "microbatch": lambda: BatchRenorm2d(4, limits=limits.fixed(1.5, 0.3), microbatch=3),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_both_sides_are_equal_in_a_model(make: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), settled(make()), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3),
        settled(make()), nn.Tanh(),
    ).double()  # fmt: skip
    x = torch.randn(7, 3, 8, 8, dtype=torch.float64)
    found = gradient_reduction(model, x, cubic)
    assert [one.layer for one in found] == ["1", "4"]
    for one in found:
        # float64 sums of 252 products, which the terms taken away leave a small part of, in places
        np.testing.assert_allclose(one.measured, one.predicted, rtol=1e-8)
        assert sum(one.mean) > 0
        assert sum(one.projection) > 0


def test_the_gradients_are_those_of_the_layer_alone() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = settled(BatchRenorm1d(5, eps=0.2))

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            for _ in range(2):  # a layer of two calls
                x = x + self.norm(x).mul_(2)
            return x

    x = torch.randn(16, 5, dtype=torch.float64)
    (found,) = gradient_reduction(Residual().double(), x, cubic)
    np.testing.assert_allclose(found.measured, found.predicted, rtol=1e-10)


def test_a_mask() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = settled(BatchRenorm1d(3, eps=0.3, microbatch=2))

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.norm(x, mask=mask)

    batch = {"x": torch.randn(5, 3, 9, dtype=torch.float64), "mask": torch.rand(5, 9) > 0.4}
    (found,) = gradient_reduction(Masked().double(), batch, cubic)
    np.testing.assert_allclose(found.measured, found.predicted, rtol=1e-10)


def test_without_eps_in_the_formula_it_would_be_unequal() -> None:
    model, x = nn.BatchNorm1d(2, eps=0.5).double(), torch.randn(9, 2, dtype=torch.float64)
    (found,) = gradient_reduction(model, x, cubic)
    square = x.var(0, correction=0).numpy() + 0.5
    plain = np.array(found.projection) / (1 + 0.5 / square)
    wrong = np.array(found.scaled) - found.mean - plain
    assert (wrong > np.array(found.measured) * 1.001).all()


def test_layers_that_it_is_not_about() -> None:
    model = nn.Sequential(
        BatchRenormAct2d(3), freeze(BatchRenorm2d(3)), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
    )
    model[2].eval()
    x = torch.randn(4, 3, 5, 5)
    with pytest.raises(ArgumentError, match="no batch norm or batch renorm layer that normalizes"):
        gradient_reduction(model, x, cubic)
    with pytest.raises(ArgumentError, match="has no parameter that learns"):
        gradient_reduction(nn.ReLU(), x, cubic)


def test_moving_averages_make_another_equation() -> None:
    moving = BatchRenorm1d(3, limits=limits.fixed(3, 5), backward="moving")
    model = nn.Sequential(settled(moving), nn.Linear(3, 3), settled(BatchRenorm1d(3))).double()
    (found,) = gradient_reduction(model, torch.randn(8, 3, dtype=torch.float64), cubic)
    assert found.layer == "2"
