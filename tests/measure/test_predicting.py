"""Predictions from propagations, and their ranking."""

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.lab.models import DeepNet
from renorm.measure import Prediction, Propagation, Site, predict
from renorm.measure.prediction import predicted, ranked

ONE = Prediction("one", 1, 8, 0.5, 2.0, 0.1, 1.0, 1.0, 1.0, True)


def propagated(cosine: float | None, gradient: float, mean_square: float | None) -> Propagation:
    def site(kind: str, gradient: float, value: float | None) -> Site:
        norm = math.sqrt(gradient)
        return Site("", kind, "", 0, (8, 2), 1, 2, 1, value, norm, gradient, cosine, 4.0)

    weights = [site("weights", g, 1.0) for g in (7.0, gradient, 1.0, 7.0)]
    activations = [site("activation", 1.0, 1.0), site("activation", 1.0, mean_square)]
    return Propagation("", "batch", 8, 1.0, (*weights, *activations), 5)


def test_means_over_draws() -> None:
    found = predicted("x", [propagated(0.2, 4.0, 16.0), propagated(0.4, 16.0, 1.0)])
    assert (found.normalizer, found.draws, found.examples, found.finite) == ("x", 2, 8, True)
    assert found.cosine == pytest.approx(0.3)
    assert found.stable_rank == 4.0
    assert found.contrast == 1
    assert found.gradient_ratio == pytest.approx(math.sqrt(2 * 4))
    assert found.gradient_growth == pytest.approx(math.sqrt(4 * 16))
    assert found.activation_growth == pytest.approx(2)


def test_what_one_draw_does_not_tell_is_not_told() -> None:
    found = predicted("x", [propagated(0.2, 4.0, None), propagated(None, 4.0, 1.0)])
    assert (found.cosine, found.activation_growth, found.finite) == (None, None, False)
    assert found.trouble == "unstable: activations are not finite"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"gradient_ratio": 100.0, "activation_growth": 0.01}, ""),
        ({"gradient_ratio": 101.0}, "unstable: gradients grow 101 times"),
        ({"gradient_ratio": 0.009}, "unstable: gradients fade to 0.009"),
        ({"activation_growth": 1e4}, "unstable: activations grow 10000 times"),
        ({"contrast": 0.07}, ""),
        ({"contrast": 0.03}, "blind: pooling makes all examples alike (contrast 0.03)"),
        ({"gradient_ratio": None, "contrast": None, "activation_growth": None}, ""),
    ],
)
def test_what_is_in_trouble(change: dict[str, Any], words: str) -> None:
    assert replace(ONE, **change).trouble == words


def test_the_ranking() -> None:
    nets = [
        replace(ONE, normalizer="exploding", cosine=0.1, gradient_ratio=1e3),
        replace(ONE, normalizer="alike", cosine=0.9),
        replace(ONE, normalizer="untold", cosine=None),
        replace(ONE, normalizer="vanishing", cosine=0.05, activation_growth=1e-3),
        replace(ONE, normalizer="apart", cosine=0.3),
        replace(ONE, normalizer="blind", cosine=0.2, contrast=0.001),
    ]
    names = [one.normalizer for one in ranked(nets)]
    assert names == ["apart", "alike", "untold", "vanishing", "exploding", "blind"]


def build(name: str) -> nn.Module:
    return DeepNet((16,), 3, depth=6, width=16, normalizer=name)


def test_normalizers_start_from_the_same_weights_and_leave_the_generators() -> None:
    weights: dict[str, list[Tensor]] = {}

    def watched(name: str) -> nn.Module:
        _ = random.random(), np.random.rand(), torch.randn(3)
        net = DeepNet((16,), 3, depth=6, width=16, normalizer=name)
        weights.setdefault(name, []).append(net.head.weight.detach().clone())
        return net

    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    steps: list[tuple] = []
    found = predict(
        watched,
        ["none", "batch_norm", "none"],
        torch.randn(8, 16, generator=torch.Generator().manual_seed(0)),
        seeds=2,
        progress=lambda *step: steps.append(step),
    )
    after = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert [one.normalizer for one in found] == ["batch_norm", "none"]
    assert steps == [("none", 1, 4), ("none", 2, 4), ("batch_norm", 3, 4), ("batch_norm", 4, 4)]
    first, second = weights["none"]
    assert torch.equal(first, weights["batch_norm"][0])
    assert not torch.equal(first, second)


def test_with_a_loss_of_its_own() -> None:
    x = torch.randn(8, 16)
    (one,) = predict(build, ["none"], x, lambda output, batch: output.square().sum())
    (twice,) = predict(build, ["none"], x, lambda output, batch: 4 * output.square().sum())
    assert one == twice


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizers": []}, "no normalizer to predict"),
        ({"normalizers": ["none"], "seeds": 0}, "at least 1, got 0"),
        ({"normalizers": ["none"], "seeds": True}, "got True"),
        ({"normalizers": ["bach_norm"]}, "Did you mean 'batch_norm'"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        predict(build, change.pop("normalizers"), torch.randn(8, 16), **change)


def test_outputs_without_numbers() -> None:
    class Labels(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).argmax(1)

    with pytest.raises(ArgumentError, match="no floating point numbers"):
        predict(lambda name: Labels(nn.Linear(16, 3)), ["none"], torch.randn(8, 16))


def test_no_propagation() -> None:
    with pytest.raises(ArgumentError, match="at least one propagation"):
        predicted("none", [])
