"""The shift of a layer's gradient: worked by hand, against copies of the model, and refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from renorm.errors import ArgumentError
from renorm.measure import covariate_shift, saving


def linear(*weights: float) -> Any:
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights)).double()
    for layer, weight in zip(model, weights, strict=True):
        nn.init.constant_(layer.weight, weight)  # type: ignore[arg-type]
    return model


def half_square(output: Tensor, batch: Any) -> Tensor:
    return output.square().mean() / 2


ONE = torch.ones(1, 1, dtype=torch.float64)


def test_two_linear_layers_by_hand() -> None:
    # L = (a b)^2 / 2 at a = 2, b = 3: grads (a b^2, a^2 b) = (18, 12); a' = 2 - 18 / 36 = 1.5
    first, second = covariate_shift(linear(2, 3), ONE, half_square, 1 / 36)
    assert (first.layer, first.parameters) == ("0", ("0.weight",))
    assert (first.norm, first.shifted_norm, first.distance, first.cosine) == (18, 18, 0, 1)
    assert (second.norm, second.shifted_norm) == (12.0, 1.5**2 * 3)
    assert (second.distance, second.cosine) == (12 - 6.75, 1.0)
    assert saving.from_dict(saving.to_dict(second)) == second


def test_an_update_by_name_by_hand() -> None:
    # a' = -2 leaves a^2 b as it is, b' is not looked at, and c is not updated
    new = {"0.weight": torch.full((1, 1), -2.0), "1.weight": torch.full((1, 1), 7.0)}
    found = covariate_shift(linear(2, 3, 1), ONE, half_square, new)
    assert [one.norm for one in found] == [18, 12, 36]
    assert [one.shifted_norm for one in found] == [18, 12, 14**2]
    # (a b)^2 c: what comes before c is -14 now, for 6
    assert [one.distance for one in found] == [0, 0, 14**2 - 36]


def test_a_gradient_that_turns() -> None:
    # L = a b x: the gradient by b is a, whose sign the update changes
    def loss(output: Tensor, batch: Any) -> Tensor:
        return output.sum()

    _, second = covariate_shift(linear(2, 3), ONE, loss, {"0.weight": torch.full((1, 1), -1.0)})
    assert (second.norm, second.shifted_norm, second.distance, second.cosine) == (2, 1, 3, -1)


class Net(nn.Module):
    """Layers that are called in another order than they are defined in."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.norm_last, self.norm_first = nn.BatchNorm2d(4), nn.BatchNorm2d(5)
        self.last, self.first = nn.Conv2d(5, 4, 3), nn.Conv2d(3, 5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_first(self.first(x)).relu()
        return self.head(self.norm_last(self.last(x)).relu().mean((2, 3)))


def cross_entropy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(output, batch[1])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_as_copies_of_the_model(mode: Any) -> None:
    model: Any = Net().double()
    batch = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.randint(3, (8,))
    layers = (("first", "norm_first"), ("last", "norm_last"), ("head",))

    def gradients(net: Any, names: tuple[str, ...]) -> Tensor:
        net.train(mode == "train").zero_grad()
        cross_entropy(net(batch[0]), batch).backward()
        parts = [p.grad.flatten() for n in names for p in getattr(net, n).parameters()]
        return torch.cat(parts)

    old, moved = copy.deepcopy(model), copy.deepcopy(model)
    found = covariate_shift(model, batch, cross_entropy, 0.3, mode=mode)
    assert [one.layer for one in found] == ["first", "last", "head"]
    assert found[1].parameters == (
        "last.weight",
        "last.bias",
        "norm_last.weight",
        "norm_last.bias",
    )
    for names, one in zip(layers, found, strict=True):
        before, after = gradients(old, names), gradients(moved, names)
        # sums of a few hundred float64 products
        assert one.norm == pytest.approx(float(before.norm()), rel=1e-10)
        assert one.distance == pytest.approx(float((before - after).norm()), rel=1e-9)
        cosine = float(torch.cosine_similarity(before, after, 0))
        assert one.cosine == pytest.approx(cosine, rel=1e-10)
        gradients(old, names)
        with torch.no_grad():
            for name in names:
                for p, g in zip(
                    getattr(moved, name).parameters(), getattr(old, name).parameters(), strict=True
                ):
                    p -= 0.3 * g.grad


def test_the_groups_of_other_models() -> None:
    class Attended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.norm = nn.LayerNorm(4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.out = nn.utils.parametrizations.weight_norm(nn.Linear(4, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.scale * x)
            return self.out(self.attention(x, x, x)[0])

    found = covariate_shift(Attended(), torch.randn(2, 3, 4), half_square, 0.1)
    assert [(one.layer, len(one.parameters)) for one in found] == [("attention", 7), ("out", 3)]
    assert all("parametrizations" in name or "bias" in name for name in found[1].parameters)


def test_groups_of_the_users_own() -> None:
    model = linear(2, 3, 5)
    groups = {"both": ("0.weight", "1.weight"), "last": ("2.weight",)}
    both, last = covariate_shift(model, ONE, half_square, 0.001, groups=groups)
    assert (both.layer, both.parameters) == ("both", groups["both"])
    new = [2 - 0.001 * 2 * 225, 3 - 0.001 * 3 * 100]
    assert last.shifted_norm == pytest.approx((new[0] * new[1]) ** 2 * 5, rel=1e-14)
    (alone,) = covariate_shift(model, ONE, half_square, 0.001, groups={"x": ["2.weight"]})
    assert alone.distance == 0  # what is in no group stays as it is


def test_an_update_that_diverges() -> None:
    new = {"0.weight": torch.full((1, 1), torch.inf)}
    _, second = covariate_shift(linear(2, 3), ONE, half_square, new)
    assert (second.shifted_norm, second.distance) == (torch.inf, torch.inf)
    assert second.cosine is None


@pytest.mark.parametrize(
    ("update", "says"),
    [
        (0.0, "learning rate of a plain step, above 0 and finite, got 0.0"),
        (True, "got True"),
        (float("nan"), "got nan"),
        (None, "got None"),
        ({"2.weight": ONE}, "update names '2.weight', .* It has 0.weight, 1.weight"),
        ({"0.weight": torch.ones(2, 2)}, r"update has 0.weight of shape \(2, 2\), .* is \(1, 1\)"),
    ],
)
def test_updates_that_are_none(update: Any, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        covariate_shift(linear(2, 3), ONE, half_square, update)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({}, "at least one parameter each"),
        ({"a": ()}, "at least one parameter each"),
        ({"a": ["0.weight"], "b": ["0.weight"]}, "no parameter twice"),
        ({"a": ["0.bias"]}, "groups names '0.bias'"),
    ],
)
def test_groups_that_are_none(groups: Any, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        covariate_shift(linear(2, 3), ONE, half_square, 0.1, groups=groups)


def test_parameters_that_do_not_learn_may_be_in_an_update() -> None:
    model = linear(2, 3)
    model[0].requires_grad_(False)
    (one,) = covariate_shift(model, ONE, half_square, dict(model.named_parameters()))
    assert (one.layer, one.distance) == ("1", 0)
