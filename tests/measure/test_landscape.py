"""The landscape along the gradient: worked by hand, against copies of the model, and refused."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from renorm import BatchRenorm2d, limits
from renorm.errors import ArgumentError
from renorm.measure import landscape, saving, step_range
from renorm.measure.records import Landscape

SIZES = (0.05, 0.1, 0.4)


class Bowl(nn.Module):
    """Half the quadratic form of a diagonal matrix, whose eigenvalues these are."""

    def __init__(self, *start: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, eigenvalues: Tensor) -> Tensor:
        return (eigenvalues * self.theta.square()).sum() / 2


def value(output: Tensor, batch: Any) -> Tensor:
    return output


def cross_entropy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(output, batch[1])


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.randint(4, (8,))


def convnet(norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        norm(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3),
        norm(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 4),
    ).double()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return model


def test_a_bowl_by_hand() -> None:
    # at (3, 0) the gradient is (2 * 3, 0): a step of s leads to 3 - 6 s, along one eigenvector
    found = landscape(Bowl(3, 0), torch.tensor([2.0, 5.0]), value, step_sizes=[0.25, 1.0])
    assert (found.loss, found.gradient_norm) == (9.0, 6.0)
    assert found.losses == (2.25, 9.0)
    assert found.distances == (3.0, 12.0)
    assert found.cosines == (1.0, -1.0)
    assert found.smoothness == 2.0
    assert (found.loss_range, found.distance_range) == ((2.25, 9.0), (3.0, 12.0))


def test_a_bowl_across_its_axes() -> None:
    # g = (1, 3), H g = (1, 9): everywhere along the gradient the ratio is ||H g|| / ||g||
    found = landscape(Bowl(1, 1), torch.tensor([1.0, 3.0]), value, step_sizes=(0.1, 0.3, 7.0))
    expected = math.sqrt(82 / 10)
    assert found.smoothness == pytest.approx(expected, rel=1e-14)
    for size, distance in zip(found.step_sizes, found.distances, strict=True):
        assert distance == pytest.approx(size * math.sqrt(82), rel=1e-14)
    assert found.cosines[0] == pytest.approx((0.9 + 9 * 0.7) / math.sqrt(10 * (0.81 + 4.41)))


def naive(model: nn.Module, batch: Any, mode: str) -> tuple[list[float], list[Tensor]]:
    """Losses and gradients by copies of the model that are moved for good."""

    def of(moved: nn.Module) -> tuple[float, Tensor]:
        loss = cross_entropy(moved.train(mode == "train")(batch[0]), batch)
        moved.zero_grad()
        loss.backward()
        return float(loss.detach()), torch.cat([p.grad.flatten() for p in moved.parameters()])  # type: ignore[union-attr]

    here = copy.deepcopy(model)
    loss, gradient = of(here)
    losses, gradients = [loss], [gradient]
    for size in SIZES:
        there = copy.deepcopy(model)
        with torch.no_grad():
            for p, origin in zip(there.parameters(), here.parameters(), strict=True):
                p -= size * origin.grad  # type: ignore[operator]
        loss, gradient = of(there)
        losses.append(loss)
        gradients.append(gradient)
    return losses, gradients


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d, lambda c: BatchRenorm2d(c, limits=limits.fixed(1.2, 0.2)), nn.Identity],
    ids=["batch norm", "batch renorm", "none"],
)
def test_as_copies_of_the_model(norm: Any, mode: Any) -> None:
    model, batch = convnet(norm), images()
    losses, gradients = naive(model, batch, mode)
    found = landscape(model, batch, cross_entropy, step_sizes=SIZES, mode=mode)
    # sums of a few hundred float64 products, taken in the same order
    torch.testing.assert_close([found.loss, *found.losses], losses, rtol=1e-12, atol=0)
    lengths = [float((gradients[0] - g).norm()) for g in gradients[1:]]
    torch.testing.assert_close(list(found.distances), lengths, rtol=1e-9, atol=0)
    cosines = [float(torch.cosine_similarity(gradients[0], g, 0)) for g in gradients[1:]]
    torch.testing.assert_close(list(found.cosines), cosines, rtol=1e-9, atol=0)
    step = float(gradients[0].norm())
    slopes = [d / (s * step) for d, s in zip(lengths, SIZES, strict=True)]
    assert found.smoothness == pytest.approx(max(slopes), rel=1e-9)


def test_the_modes_have_other_landscapes() -> None:
    model, batch = convnet(), images()
    train, evaluation = (
        landscape(model, batch, cross_entropy, step_sizes=SIZES, mode=mode)
        for mode in ("train", "eval")
    )
    assert train.loss != evaluation.loss
    assert train.smoothness != evaluation.smoothness
    again = landscape(model.eval(), batch, cross_entropy, step_sizes=SIZES)
    assert again == train  # whatever mode the model is in


def test_what_a_model_in_training_has_in_eval_mode_stays_in_it() -> None:
    model, batch = convnet(), images()
    model[1].eval()
    partly = landscape(model, batch, cross_entropy, step_sizes=SIZES)
    model[4].eval()
    fully = landscape(model, batch, cross_entropy, step_sizes=SIZES)
    assert partly != fully
    assert fully == landscape(model, batch, cross_entropy, step_sizes=SIZES, mode="train")
    assert fully.loss == landscape(model, batch, cross_entropy, step_sizes=SIZES, mode="eval").loss


def test_dropout_draws_the_same_mask_at_each_point() -> None:
    # of a linear function the gradient is the same everywhere, but for the mask
    model = nn.Sequential(nn.Dropout(), nn.Linear(50, 1)).double().train()
    x = torch.randn(4, 50, dtype=torch.float64)
    found = landscape(model, x, lambda y, batch: y.sum(), step_sizes=SIZES)
    assert found.distances == (0.0, 0.0, 0.0)
    assert found.smoothness == 0.0


def test_statistics_do_not_move_from_point_to_point() -> None:
    # batch renorm's output depends on them
    model, batch = convnet(lambda c: BatchRenorm2d(c, momentum=0.5)), images()
    found = landscape(model, batch, cross_entropy, step_sizes=(1e-9, 0.1, 1e-9))
    assert found.losses[0] == found.losses[2]


def test_points_that_diverge_are_infinite() -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.tensor(-4.0))

        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(self.theta.square() * x) - torch.exp(self.theta.square())

    found = landscape(Steep(), torch.tensor(1.05), value, step_sizes=(1e-12, 1.0))
    assert found.losses[0] < math.inf
    assert (found.losses[1], found.distances[1], found.smoothness) == (math.inf,) * 3
    assert found.cosines[1] is None
    assert saving.from_dict(saving.to_dict(found)) == found


def test_where_the_gradient_is_zero() -> None:
    found = landscape(Bowl(0, 0), torch.tensor([1.0, 2.0]), value, step_sizes=(1.0,))
    assert (found.distances, found.cosines, found.smoothness) == ((0.0,), (None,), None)


def test_a_penalty_of_the_users_is_differentiated() -> None:
    model = Bowl(3, 0)

    def loss(output: Tensor, batch: Tensor) -> Tensor:
        return output + model.theta.square().sum()

    found = landscape(model, torch.tensor([2.0, 5.0]), loss, step_sizes=(0.1,))
    assert found.smoothness == pytest.approx(4.0, rel=1e-14)


def test_parameters_that_are_shared_or_do_not_learn() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(1, 1, bias=False).double()
            self.second = nn.Linear(1, 1, bias=False).double()
            self.second.weight = self.first.weight
            self.scale = nn.Parameter(torch.tensor(2.0).double(), requires_grad=False)
            nn.init.constant_(self.first.weight, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.second(self.first(x)).sum()

    # 2 w^2 at 3: the gradient is 4 w, and changes by 4 for each 1
    x = torch.ones(1, 1, dtype=torch.float64)
    found = landscape(Tied(), x, value, step_sizes=(0.5,))
    assert (found.loss, found.gradient_norm, found.losses) == (18.0, 12.0, (18.0,))
    assert found.smoothness == 4.0


def test_checkpointed_layers_are_repeated_with_the_same_parameters() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    for norm in (nn.BatchNorm2d, BatchRenorm2d):
        model, batch = convnet(norm), images()
        plain = landscape(model, batch, cross_entropy, step_sizes=SIZES)
        assert landscape(Checkpointed(model), batch, cross_entropy, step_sizes=SIZES) == plain


def test_half_precision_is_measured_in_float64() -> None:
    found = landscape(
        Bowl(300, 0).bfloat16(), torch.tensor([2.0, 0]).bfloat16(), value, step_sizes=(0.5,)
    )
    assert found.distances == (600.0,)


def test_a_loss_of_one_element() -> None:
    found = landscape(Bowl(3, 0), torch.ones(2), lambda y, _: y.view(1, 1), step_sizes=(1,))
    assert found.loss == 4.5


def test_the_ranges_of_the_paper() -> None:
    assert step_range(0.1, count=2) == (0.05, 0.4)
    low, *_, high = step_range(1e-3, "linear", count=5)
    assert (low, high) == (pytest.approx(1e-5), pytest.approx(0.03))
    ratios = [b / a for a, b in zip(step_range(2.0), step_range(2.0)[1:], strict=False)]
    assert len(ratios) == 7
    assert all(ratio == pytest.approx(8 ** (1 / 7)) for ratio in ratios)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lr": 0.0}, "A learning rate is above 0 and finite, got 0.0"),
        ({"lr": math.nan}, "above 0 and finite, got nan"),
        ({"lr": 1, "net": "resnet"}, "net is one of vgg, linear, got 'resnet'"),
        ({"lr": 1, "count": 1}, "at least 2, got 1"),
        ({"lr": 1, "count": True}, "at least 2, got True"),
    ],
)
def test_ranges_that_are_none(given: Any, says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        step_range(**given)


@pytest.mark.parametrize(
    "sizes", [(), (0.0,), (0.1, -1.0), (math.inf,), (math.nan,), ("0.1",), 0.0, None]
)
def test_step_sizes_that_are_none(sizes: Any) -> None:
    with pytest.raises(ArgumentError, match=r"above 0 and finite, at least one, got .*step_range"):
        landscape(Bowl(1), torch.ones(1), value, step_sizes=sizes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": None}, "There is no batch, got None"),
        ({"loss": None}, r"loss is called, \(output, batch\)"),
        ({"forward": 3}, r"forward is called, \(model, batch\)"),
        ({"mode": "test"}, "mode is 'train' or 'eval', got 'test'"),
        ({"model": nn.ReLU()}, "ReLU has no parameter that learns"),
        ({"model": Bowl(1).requires_grad_(False)}, "Bowl has no parameter that learns"),
        ({"model": Bowl(1).to("meta")}, "These have no values yet: theta"),
        ({"model": nn.LazyLinear(2)}, "no values yet: weight, bias"),
        ({"loss": lambda y, batch: y.item()}, "does not depend on a parameter .* without item"),
        ({"loss": lambda y, batch: y.detach()}, "does not depend on a parameter"),
        ({"loss": lambda y, batch: batch}, "The loss is one number a batch, got Tensor of shape"),
        ({"loss": lambda y, batch: y / 0}, "at the model's parameters is inf.* not finite"),
        ({"loss": lambda y, batch: y * math.nan}, "at the model's parameters is nan"),
    ],
)
def test_what_is_refused(change: dict[str, Any], says: str) -> None:
    batch = torch.ones(2, dtype=torch.float64)
    given = {"model": Bowl(1, 2), "batch": batch, "loss": value, "step_sizes": (1,)} | change
    with pytest.raises(ArgumentError, match=says):
        landscape(**given)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"is 0\.0, and it or its gradient is not finite"):
        landscape(
            Bowl(0.0),
            torch.ones(1),
            lambda y, batch: y.sqrt(),
            step_sizes=(1,),
        )


def test_errors_of_the_model_say_what_it_was_called_with() -> None:
    with pytest.raises(RuntimeError) as caught:
        landscape(nn.Linear(3, 1), torch.ones(2, 4), value, step_sizes=(1,))
    assert "the batch is float32 (2, 4) on cpu" in caught.value.__notes__[0]


def test_another_way_to_call_the_model() -> None:
    batch = {"eigenvalues": torch.tensor([2.0, 5.0])}
    by_keywords = landscape(Bowl(3, 0), batch, value, step_sizes=(0.25,))
    by_function = landscape(
        Bowl(3, 0), batch, value, step_sizes=(0.25,), forward=lambda m, b: m(b["eigenvalues"])
    )
    assert by_keywords == by_function
    assert isinstance(by_keywords, Landscape)
    assert by_keywords.losses == (2.25,)
