"""Signals and gradients on their way through a model, against what autograd and numpy say."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from surveyed import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from renorm import BatchRenorm1d
from renorm.errors import ArgumentError
from renorm.measure import Propagation, Site, propagation


def rows(count: int = 8, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1)).double()


def weighted(output: Tensor, batch: Any) -> Tensor:
    """A linear loss of random weights, the same at every call."""
    generator = torch.Generator().manual_seed(2)
    return (output * torch.randn(output.shape, generator=generator).to(output)).sum()


def plain(*, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(inplace),
        nn.Linear(5, 4),
        nn.LayerNorm(4),
        nn.SiLU(inplace),
        nn.Linear(4, 3),
    ).double()


def by_hand(model: nn.Sequential, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Outputs of all modules in train mode, and the gradients of ``weighted`` with respect."""
    outputs: list[Tensor] = []
    for module in model.train():
        x = module(x)
        x.retain_grad()
        outputs.append(x)
    weighted(x, None).backward()
    return [(y.detach(), y.grad) for y in outputs if y.grad is not None]


def assert_like(site: Site, output: Tensor, gradient: Tensor) -> None:
    values, slopes = output.numpy(), gradient.numpy()
    assert site.shape == output.shape
    assert site.variance == close(values.var(0).mean())
    assert site.mean_square == close((values**2).mean())
    assert site.gradient_norm == close(np.linalg.norm(slopes))
    assert site.gradient_square == close((slopes**2).mean())


def close(expected: Any) -> Any:
    """To a sum of at most 40 values in float64."""
    return pytest.approx(float(expected), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("inplace", [False, True])
def test_every_site_by_hand(inplace: bool) -> None:
    found = propagation(plain(inplace=inplace), rows(), weighted, similarity="everywhere")
    expected = by_hand(plain(), rows())
    assert [site.layer for site in found.sites] == list("0123456")
    assert [site.kind[0] for site in found.sites] == list("wnawnaw")
    assert [site.type for site in found.sites][1:3] == ["BatchNorm1d", "relu"]
    for site, (output, gradient) in zip(found.sites, expected, strict=True):
        assert_like(site, output, gradient)
    assert found.sites[1].variance_in == found.sites[0].variance
    assert found.sites[1].mean_square_in == found.sites[0].mean_square
    assert found.sites[2].variance_in == found.sites[1].variance
    assert found.penultimate == 5
    assert found.loss == pytest.approx(float(weighted(expected[-1][0], None)), rel=1e-12)


def test_similarity_by_hand() -> None:
    everywhere = propagation(plain(), rows(), similarity="everywhere")
    found = propagation(plain(), rows())
    activations = by_hand(plain(), rows())[5][0].numpy()
    unit = activations / np.linalg.norm(activations, axis=1, keepdims=True)
    gram = unit @ unit.T
    assert found.cosine == pytest.approx((gram.sum() - 8) / 56, rel=1e-12)
    assert found.stable_rank == pytest.approx(8 / np.linalg.eigvalsh(gram)[-1], rel=1e-12)
    assert found.sites[2].cosine is None
    assert (everywhere.cosine, everywhere.stable_rank) == (found.cosine, found.stable_rank)
    assert everywhere.sites[2].cosine is not None
    assert everywhere.sites[0].cosine is None


def test_equal_and_orthogonal_examples() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 1)).double()
    equal = propagation(model, torch.ones(4, 4).double() * torch.arange(1, 5).view(4, 1))
    apart = propagation(model, torch.eye(4).double())
    assert (equal.cosine, equal.stable_rank) == (pytest.approx(1), pytest.approx(1))
    assert (apart.cosine, apart.stable_rank) == (pytest.approx(0), pytest.approx(4))


def test_images_have_channels_first_and_sequences_last() -> None:
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    convolution: Any = nn.Conv2d(3, 2, 3).double()
    (site,) = propagation(convolution, x).sites
    expected = convolution(x).detach().numpy().var((0, 2, 3)).mean()
    assert site.variance == pytest.approx(expected, rel=1e-12)
    tokens = torch.randn(4, 7, 3, dtype=torch.float64)
    model: Any = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.GELU()).double()
    found = propagation(model, tokens)
    assert found.sites[2].variance == pytest.approx(
        model(tokens).detach().numpy().var((0, 1)).mean(), rel=1e-12
    )


class Block(nn.Module):
    """Activations by functions and methods, a layer that is called twice, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.first(x))) + x
        y = torch.relu_(self.norm(self.first(y)).sigmoid() + y)
        return self.head(y.tanh())


def test_functions_are_sites_in_the_module_that_calls_them() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.block(x)

    model = nn.Module()
    model.block = Block()
    found = propagation(model.double(), rows(), weighted, forward=forward)
    named = [(site.layer, site.type, site.call) for site in found.sites]
    assert named == [
        ("block.first", "Linear", 0),
        ("block.norm", "BatchNorm1d", 0),
        ("block", "relu", 0),
        ("block.first", "Linear", 1),
        ("block.norm", "BatchNorm1d", 1),
        ("block", "sigmoid", 0),
        ("block", "relu", 1),
        ("block", "tanh", 0),
        ("block.head", "Linear", 0),
    ]
    assert all(site.gradient_norm for site in found.sites)
    assert found.penultimate == 7


def test_without_a_loss_there_are_no_gradients() -> None:
    found = propagation(plain(), rows())
    assert found.loss is None
    assert {site.gradient_norm for site in found.sites} == {None}
    assert (found.gradient_growth, found.gradient_ratio) == (None, None)


def test_gradients_of_a_model_that_learns_nothing() -> None:
    learning = propagation(plain(), rows(), weighted)
    frozen = propagation(plain(inplace=True).requires_grad_(False), rows(), weighted)
    assert learning.sites == frozen.sites


def test_recomputed_activations() -> None:
    model = plain()

    def forward(model: Any, x: Tensor) -> Tensor:
        return model[3:](checkpoint(model[:3], x, use_reentrant=False))

    assert propagation(model, rows(), weighted, forward=forward) == propagation(
        model, rows(), weighted
    )


def test_statistics() -> None:
    model: Any = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.9)).double()
    normalized = [propagation(model.eval(), rows()).sites[1].variance]
    normalized += [propagation(model.train(), rows(), statistics="as it is").sites[1].variance]
    raw = propagation(model, rows(), statistics="running").sites[1]
    # 1 less eps / (variance + eps), whose largest is below 1e-5 / 0.01
    assert normalized == [pytest.approx(1, abs=1e-3)] * 2
    assert raw.variance == pytest.approx(raw.variance_in, rel=1e-4)


@pytest.mark.parametrize("norm", [BatchRenorm1d(6), nn.RMSNorm(6), nn.InstanceNorm1d(6)])
def test_normalizers_of_other_kinds(norm: nn.Module) -> None:
    x = rows() if not isinstance(norm, nn.InstanceNorm1d) else torch.randn(4, 6, 9).double()
    found = propagation(norm.double(), x, weighted)
    assert [site.kind for site in found.sites] == ["norm"]
    assert found.penultimate is None


def test_frozen_normalizers() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), FrozenBatchNorm2d(3), nn.ReLU())
    found = propagation(model, torch.randn(4, 2, 5, 5), weighted)
    assert [site.kind for site in found.sites] == ["weights", "norm", "activation"]
    assert found.sites[1].variance == pytest.approx(found.sites[0].variance, rel=1e-4)


def test_what_is_not_finite_is_none() -> None:
    model: Any = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    with torch.no_grad():
        model[0].weight.fill_(math.inf)
    found = propagation(model, rows(), weighted)
    assert (found.sites[0].variance, found.cosine, found.stable_rank) == (None, None, None)
    assert found.loss is None


def test_growth_is_read_off_the_hidden_layers_but_the_first() -> None:
    def site(kind: str, gradient: float, mean_square: float = 1.0) -> Site:
        norm = gradient**0.5
        return Site(
            "", kind, "", 0, (2,), None, None, None, mean_square, norm, gradient, None, None
        )

    weights = [site("weights", g) for g in (99.0, 8.0, 4.0, 2.0, 77.0)]
    activations = [site("activation", 1.0, m) for m in (1.0, 3.0)]
    found = Propagation("", "batch", 2, None, (*weights, *activations), 6)
    assert found.gradient_growth == pytest.approx(2)
    assert found.gradient_ratio == pytest.approx(2)
    assert found.activation_growth == 3


def test_the_contrast_is_what_pooling_leaves() -> None:
    class Pooled(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return self[0](input.relu().mean(2))

    x = torch.randn(64, 6, 100, generator=torch.Generator().manual_seed(1)).double()
    rectified = x.relu().numpy()
    expected = rectified.mean(2).var(0).mean() / rectified.var((0, 2)).mean() * 100
    found = propagation(Pooled(nn.Linear(6, 1)).double(), x).contrast
    assert found == pytest.approx(expected, rel=1e-12)
    # of 6 channels a variance of 64 means each: the deviation is sqrt(2 / 64 / 6) = 0.07
    assert found == pytest.approx(1, abs=0.3)
    flat = nn.Sequential(nn.ReLU(), nn.Linear(6, 1)).double()
    assert propagation(flat, rows()).contrast == pytest.approx(1)
    assert propagation(nn.ReLU(), rows()).contrast is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": 3}, "loss is called"),
        ({"forward": "model"}, "forward is called"),
        ({"statistics": "train"}, "statistics is 'batch' or 'running' or 'as it is', got 'train'"),
        ({"similarity": "all"}, "similarity is"),
        ({"loss": lambda output, batch: 1.0}, "depends on the output, got float"),
        ({"loss": lambda output, batch: output}, r"single value .* float64 \(8, 3\)"),
        ({"loss": lambda output, batch: output.detach().sum()}, "depends on the output"),
        ({"model": nn.Dropout()}, "Dropout calls no convolution"),
        ({"model": nn.LazyLinear(3)}, "not met its first input"),
        ({"model": nn.Linear(3, 3, device="meta")}, "meta device"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": plain(), "batch": rows(), "loss": weighted} | change
    with pytest.raises(ArgumentError, match=message):
        propagation(given.pop("model"), given.pop("batch"), given.pop("loss"), **given)


def test_an_error_of_the_model_says_what_it_was_given() -> None:
    with pytest.raises(RuntimeError, match="shapes") as caught:
        propagation(plain(), rows(width=3))
    assert "renorm called model(batch)" in caught.value.__notes__[0]
