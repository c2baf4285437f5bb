"""The closed forms by themselves, and beside what is measured of wide nets."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from renorm.errors import ArgumentError
from renorm.lab.models import DeepNet
from renorm.measure import Propagation, closed_forms, propagation

WIDTH = 256


def followed(net: DeepNet, x: Tensor, **options: Any) -> Propagation:
    cotangent = torch.randn(len(x), 10)
    return propagation(net, x, lambda output, batch: (output * cotangent).sum(), **options)


def connected(seed: int, normalizer: str, **options: Any) -> Propagation:
    torch.manual_seed(seed)
    net = DeepNet((WIDTH,), 10, depth=8, width=WIDTH, normalizer=normalizer, **options)
    return followed(net, torch.randn(WIDTH, WIDTH), similarity="everywhere")


def test_they_agree_with_one_another() -> None:
    assert closed_forms.gradient_growth(1) == pytest.approx(math.pi / (math.pi - 1))
    for size in (1, 2, 5, math.inf):
        by_depth = closed_forms.gradient_growth_by_depth(9, size)
        assert by_depth[0] == pytest.approx(closed_forms.gradient_growth(size))
        assert by_depth == pytest.approx(np.sort(by_depth), rel=1e-15)
    assert closed_forms.gradient_growth_by_depth(9) == pytest.approx(math.pi / (math.pi - 1))
    assert closed_forms.correlation_by_depth(0, 5, 1) == pytest.approx(1 / math.pi)
    steps = closed_forms.correlation_by_depth(0.3, 5)
    assert closed_forms.relu_correlation(steps[:-1]) == pytest.approx(steps[1:])


def test_the_map_is_that_of_gaussians() -> None:
    """The cosine of relu(u) and relu(v), by a grid over the angle of (u, v): r drops out."""
    c = 0.3
    angles = (np.arange(100_000) + 0.5) * 2 * math.pi / 100_000
    u = np.cos(angles)
    v = c * u + math.sqrt(1 - c**2) * np.sin(angles)
    relu_u, relu_v = np.maximum(u, 0), np.maximum(v, 0)
    cosine = (relu_u * relu_v).mean() / math.sqrt((relu_u**2).mean() * (relu_v**2).mean())
    # the rule's error for a function with kinks is of second order in the step
    assert float(closed_forms.relu_correlation(c)) == pytest.approx(cosine, abs=1e-8)


# Mean squares of W values have a relative deviation of about sqrt(2 / W), so a growth over 6 layers
# one of sqrt(2) * sqrt(2 / 256) / 6 = 0.021, and the mean of three seeds 0.012.
@pytest.mark.parametrize(("normalizer", "group_size"), [("batch_norm", 1), ("none", math.inf)])
def test_gradients_grow_as_told(normalizer: str, group_size: float) -> None:
    found = [connected(seed, normalizer).gradient_growth or math.nan for seed in range(3)]
    assert np.mean(found) == pytest.approx(closed_forms.gradient_growth(group_size), rel=0.05)


def test_what_comes_before_batch_norm_has_the_variance_told() -> None:
    before = [site.variance for site in connected(0, "batch_norm").hidden[1:]]
    expected = 1 / closed_forms.gradient_growth()
    # of 7 layers: a mean square of a width, see above, 0.088 / sqrt(7)
    assert np.mean(before) == pytest.approx(expected, rel=0.1)  # pyright: ignore[reportCallIssue,reportArgumentType]


@pytest.mark.parametrize("normalizer", ["layer_norm", "none"])
def test_examples_become_alike_as_told(normalizer: str) -> None:
    found = [connected(seed, normalizer).of("activation") for seed in range(3)]
    cosines = np.array([[site.cosine for site in sites] for sites in found], float).mean(0)
    # the shared part of a layer's activations is a mean over W units: a deviation of at most
    # sqrt(2 / 256) a layer, shrunk by the map's slope of at most 1, over 8 layers and 3 seeds
    assert cosines == pytest.approx(closed_forms.correlation_by_depth(0, 8), abs=0.14)
    assert (np.diff(cosines) > 0).all()


def test_batch_norm_keeps_examples_apart() -> None:
    assert connected(0, "batch_norm").cosine == pytest.approx(1 / math.pi, abs=0.02)


def test_groups_of_channels_in_a_convolutional_net() -> None:
    growths = []
    for size in (2, 8):
        torch.manual_seed(0)
        options = {"normalizer": "group_norm", "options": {"group_size": size}}
        net = DeepNet((3, 16, 16), 10, depth=8, width=64, **options)
        found = followed(net, torch.randn(8, 3, 16, 16))
        told = closed_forms.gradient_growth_by_depth(6, size)
        # 64 channels of correlated positions: sqrt(2) * sqrt(2 / 64) / 6 = 0.042
        assert found.gradient_growth == pytest.approx(np.exp(np.log(told).mean()), rel=0.1)
        growths.append(found.gradient_growth)
    assert growths[0] > growths[1] + 0.1


@pytest.mark.parametrize("normalizer", ["batch_norm", "layer_norm", "none"])
def test_residual_streams_grow_as_told(normalizer: str) -> None:
    found = connected(0, normalizer, residual=True)
    stream = [site.mean_square_in for site in found.of("weights")[1::2]]
    told = closed_forms.residual_mean_square(8, normalized=normalizer != "none")
    # a block's own part has the deviation sqrt(2 / 256) = 0.09, and a product of 8 such 0.25
    assert stream[1:-1] == pytest.approx(told[:-1], rel=0.5 if normalizer == "none" else 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: closed_forms.gradient_growth(0.5), "group_size is a number from 1 on, got 0.5"),
        (lambda: closed_forms.gradient_growth(math.nan), "got nan"),
        (lambda: closed_forms.gradient_growth(True), "got True"),
        (lambda: closed_forms.gradient_growth_by_depth(-1), "depth is a whole number"),
        (lambda: closed_forms.correlation_by_depth(0, 2.0), "got 2.0"),  # pyright: ignore[reportArgumentType]
        (lambda: closed_forms.relu_correlation([0, 1.5]), "between -1 and 1"),
        (lambda: closed_forms.residual_mean_square(True, normalized=True), "got True"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
