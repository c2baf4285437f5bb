"""Normalizers of the package in the place of the batch norms of the lab's nets, and of others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from renorm.errors import ArgumentError, ConversionError
from renorm.lab import training
from renorm.lab.models import MODELS
from renorm.lab.normalizers import NORMALIZERS, PerGroup, Setting
from renorm.lab.tasks import fitting
from renorm.nn.normalizers import EvoNormS0, FilterResponseNorm, WeightNorm, normalizers
from renorm.report.records import Specification

ACTIVATING = [name for name, entry in normalizers().items() if entry.activates]
ON_WEIGHTS = ["weight_norm", "scaled_weight_standardization"]
OF_GROUPS = ["variance_norm", "evonorm_b0", "lp_batch_norm", "noisy_batch_norm"]
NETS = [name for name in MODELS if name != "resnet18"]  # its blocks are those of resnet14
SHORT = Specification("digits", "convnet", "batch_norm", "iid", 0, 3, 0.1, 32, 8)
SETTING = Setting(None, 10, torch.zeros(2, 3, 8, 8))


def count(model: nn.Module, kinds: Any) -> int:
    return sum(isinstance(module, kinds) for module in model.modules())


def bare(model: nn.Module) -> int:
    """Norms that no activation module follows: each ends a branch or a shortcut."""
    named = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    return sum(name.endswith("norm2") or ".shortcut." in name for name in named)


def applied(name: str, model: nn.Module, setting: Setting = SETTING) -> nn.Module:
    return NORMALIZERS[name].apply(model, setting)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["evonorm_s0", "weight_norm"])
def test_a_layer_that_activates_takes_the_place_of_the_activation_that_follows(
    name: str, net: str
) -> None:
    model = MODELS[net].build((3, 8, 8), 4)
    norms = count(model, nn.BatchNorm1d | nn.BatchNorm2d)
    followed = norms - bare(model)
    assert count(model, nn.ReLU | nn.Sigmoid) == followed
    model = applied(name, model)
    assert count(model, EvoNormS0 | WeightNorm) == norms
    assert count(model, nn.ReLU | nn.Sigmoid) == 0
    assert count(model, nn.Identity) == followed
    scores = model(torch.randn(4, 3, 8, 8))
    scores.backward(torch.randn_like(scores))
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(set(NORMALIZERS) - set(ACTIVATING)))
def test_other_layers_leave_the_activations(name: str) -> None:
    model = MODELS["resnet14"].build((3, 8, 8), 4)
    before = count(model, nn.ReLU)
    assert before == count(applied(name, model), nn.ReLU) == 7


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ON_WEIGHTS)
def test_every_source_has_one_layer_on_its_weights(name: str, net: str) -> None:
    model = applied(name, MODELS[net].build((3, 8, 8), 4))
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "fold")]
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == len(weighted) - 1
    assert {layer.source for layer in layers} == set(weighted[:-1])
    assert not parametrize.is_parametrized(weighted[-1])


@pytest.mark.parametrize("name", OF_GROUPS)
def test_groups_are_normalized_apart_as_batch_norms_are(name: str) -> None:
    torch.manual_seed(0)
    setting = replace(SETTING, group=4)
    model = applied(name, MODELS["vgg"].build((3, 8, 8), 4), setting)
    assert count(model, PerGroup) == 6
    x = torch.randn(8, 3, 8, 8)
    state = torch.get_rng_state()
    first = model(x)[:4]
    torch.set_rng_state(state)
    again = model(torch.cat([x[:4], torch.randn(4, 3, 8, 8, generator=torch.Generator())]))[:4]
    assert torch.equal(first, again)
    torch.set_rng_state(state)
    mixed = model(torch.cat([x[:3], -x[3:]]))[:3]
    assert not torch.allclose(mixed, first[:3])
    assert not count(applied(name, MODELS["vgg"].build((3, 8, 8), 4)), PerGroup)


@pytest.mark.parametrize("name", OF_GROUPS)
def test_by_batch_statistics_they_take_those_of_the_batch(name: str) -> None:
    """As the train mode of the two modes that a trained net is judged in has them."""
    for group in (None, 4):
        setting = replace(SETTING, group=group)
        model = applied(name, MODELS["vgg"].build((3, 8, 8), 4), setting)
        model = fitting._by_batch_statistics(model)
        x = torch.randn(8, 3, 8, 8)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        model(x)
        moved = {key for key, value in model.state_dict().items() if not value.equal(state[key])}
        assert {key.rpartition(".")[2] for key in moved} >= {"num_batches_tracked"}
        assert not [m for m in model.modules() if m.training and isinstance(m, nn.ReLU)]


@pytest.mark.parametrize("condition", ["iid", "microbatch"])
@pytest.mark.parametrize("name", NORMALIZERS)
def test_every_normalizer_trains_three_steps(name: str, condition: str) -> None:
    record = training.run(replace(SHORT, normalizer=name, condition=condition))
    assert record.error is None
    assert record.diverged_at is None
    assert record.score is not None
    assert record.loss is not None


@pytest.mark.parametrize("name", [*ON_WEIGHTS, "lp_batch_norm"])
def test_copies_for_other_devices_train_alike(name: str) -> None:
    """They share the parameters, those that weights are made of included."""
    record = training.run(replace(SHORT, normalizer=name, condition="devices"))
    assert record.error is None
    if name in ON_WEIGHTS:  # examples do not mix, so the copies are one net
        alone = training.run(replace(SHORT, normalizer=name, condition="microbatch"))
        assert record.score == pytest.approx(alone.score, abs=0.02)


def test_a_model_is_left_as_it_was_but_for_its_layers() -> None:
    """The forward that is looked at moves nothing and draws nothing."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU(inplace=True)
    )
    model[2].eval()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert applied("filter_response_norm", model) is model
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model] == [True, True, False, True]
    assert isinstance(model[1], FilterResponseNorm)
    assert isinstance(model[3], nn.Identity)
    assert not model[1]._forward_hooks


class Functional(nn.Module):
    """Convolution and norm, an activation of one kind or another, and a residual sum."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu, self.kind = nn.ReLU(), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        if self.kind == "function":
            return F.relu(y)
        if self.kind == "method":
            return y.sigmoid()
        if self.kind == "after the sum":
            y += x
            return self.relu(y)
        return self.relu(self.relu(y) + x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("function", "but norm is followed by the function relu, which cannot be left out"),
        ("method", "but norm is followed by the function sigmoid, which cannot be left out"),
        ("shared", "but relu, after norm, serves another place of the model too"),
    ],
)
def test_an_activation_that_cannot_be_left_out_is_named(kind: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        applied("evonorm_s0", Functional(kind))
    applied("variance_norm", Functional(kind))


def test_an_activation_after_a_sum_in_place_stays() -> None:
    model = applied("evonorm_s0", Functional("after the sum"))
    assert isinstance(model.get_submodule("relu"), nn.ReLU)


def test_one_activation_after_several_norms_is_left_out() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), relu, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), relu
    )
    model = applied("evonorm_s0", model)
    assert not count(model, nn.ReLU)


@pytest.mark.parametrize("name", ["instance_norm", "filter_response_norm", "evonorm_b0"])
def test_normalizers_over_positions_are_refused_where_there_are_none(name: str) -> None:
    specification = replace(SHORT, model="mlp", normalizer=name)
    task = training.task_of(specification)
    with pytest.raises(ArgumentError, match=r"has a group of a single value|has a single one"):
        task.check(training.plan(specification))


def test_groups_of_few_channels_hold_more_than_one_value() -> None:
    for channels, groups in ((4, 1), (2, 1), (8, 4), (6, 2), (5, 1)):
        model = nn.Sequential(nn.Linear(3, channels), nn.BatchNorm1d(channels))
        model = applied("group_norm", model, replace(SETTING, example=torch.zeros(2, 3)))
        layer = model.get_submodule("1")
        assert isinstance(layer, nn.GroupNorm)
        assert layer.num_groups == groups
    maps = applied("group_norm", nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    layer = maps.get_submodule("1")
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == 4


def test_a_norm_without_a_source_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    with pytest.raises(ConversionError, match=r"2 \(torch.*BatchNorm2d\) is fed by 1, which is a"):
        applied("weight_norm", model)
