"""Compensation from a sample of positions: without bias, and the better the larger it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import renorm
from renorm.nn.history import Sizes, shapes
from renorm.nn.window_settings import history_for


def pair(compensation: str, sample: int | None, groups: int = 1) -> tuple[Any, Any]:
    torch.manual_seed(0)
    source = nn.Conv2d(4, 8, 3, padding=1, groups=groups).double()
    settings: Any = {"window": 2, "compensation": compensation, "sample": sample}
    norm: Any = renorm.CrossIterationBatchNorm2d(8, **settings).double()
    norm.attach(source)
    return source, norm


def variance_after(
    compensation: str, sample: int | None, position: int, x: Tensor, change: Tensor, groups: int
) -> Tensor:
    """The variance (C,) that x had, at changed weights; ``position`` chooses the sample."""
    source, norm = pair(compensation, sample, groups)
    norm._history.prepare(x.device, x.dtype)
    norm._history.position = position
    norm(source(x))
    W = (source.weight.detach() + change).view(groups, 8 // groups, -1)
    return norm._history.variances(W)[:, 0]


@pytest.mark.parametrize("compensation", ["first_order", "exact"])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_mean_over_samples_is_what_all_positions_give(compensation: str, groups: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 9, 8, generator=generator, dtype=torch.float64) + 2
    change = 0.02 * torch.randn(8, 4 // groups, 3, 3, generator=generator, dtype=torch.float64)
    expected = variance_after(compensation, None, 0, x, change, groups)
    unchanged = variance_after("none", None, 0, x, change, groups)
    spreads = []
    for sample in (4, 16, 64):
        runs = torch.stack(
            [variance_after(compensation, sample, i, x, change, groups) for i in range(200)]
        )
        error = (runs - expected) / expected
        standard_error = error.std(0) / 200**0.5
        # first order squares what is estimated, which adds the variance of it over 4 var
        bias = 0.0 if compensation == "exact" else (error.std(0) ** 2) / 4
        assert ((error.mean(0) - bias).abs() < 4.5 * standard_error + 1e-4).all()
        spreads.append(float(error.square().mean().sqrt()))
    assert spreads[0] > 1.4 * spreads[1] > 1.4**2 * spreads[2]
    assert spreads[2] < float(((unchanged - expected) / expected).square().mean().sqrt())


def test_the_sample_is_taken_anew_each_iteration_and_alike_in_two_runs() -> None:
    (source, norm), (other_source, other) = pair("exact", 3), pair("exact", 3)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    seen = []
    for _ in range(3):
        norm(source(x))
        other(other_source(x))
        seen.append(norm._history.tensors["patches"].clone())
        assert torch.equal(seen[-1], other._history.tensors["patches"])
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_no_generator_is_touched() -> None:
    before = torch.random.get_rng_state()
    source, norm = pair("exact", 3)
    state = torch.random.get_rng_state()
    norm(source(torch.ones(2, 4, 6, 6, dtype=torch.float64)))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.random.set_rng_state(before)


@pytest.mark.parametrize("compensation", ["first_order", "exact"])
def test_unchanged_weights_change_nothing_whatever_was_sampled(compensation: str) -> None:
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    none = torch.zeros(8, 4, 3, 3, dtype=torch.float64)
    for position in (0, 1, 7):
        found = variance_after(compensation, 5, position, x, none, 1)
        source, _ = pair(compensation, 5)
        expected = source(x).var((0, 2, 3), correction=0).detach()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_smaller_form_of_a_sample_is_kept() -> None:
    deep, depthwise = nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3, groups=64)
    methods = {deep: ("patches", "outputs"), depthwise: ("covariance", "derivative")}
    exact = renorm.CrossIterationBatchNorm2d(64, compensation="exact", sample=16)
    first_order = renorm.CrossIterationBatchNorm2d(64, compensation="first_order", sample=16)
    for source, (of_exact, of_first_order) in methods.items():
        assert history_for(exact, source).method == of_exact
        assert history_for(first_order, source).method == of_first_order


def test_shapes_are_those_of_the_documentation() -> None:
    sizes = Sizes(channels=8, groups=2, values=9, lags=3, sample=5)
    assert shapes("derivative", sizes)["derivative"] == (8, 3, 9)
    assert shapes("covariance", sizes)["covariance"] == (2, 9, 3, 9)
    assert shapes("patches", sizes)["patches"] == (2, 3 + 1 + 3 * 5, 9)
    assert shapes("outputs", sizes)["outputs"] == (8, 3, 5)
