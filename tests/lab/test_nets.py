from dataclasses import replace

import pytest
import torch
from torch import nn

from renorm import BatchRenorm2d, CrossIterationBatchNorm2d, limits
from renorm.lab.models import ConvNet
from renorm.lab.normalizers import NORMALIZERS, PerGroup, Setting

SETTING = Setting(4, 100, torch.zeros(2, 1, 8, 8))


def applied(name: str, setting: Setting = SETTING) -> nn.Module:
    torch.manual_seed(3)
    return NORMALIZERS[name].apply(ConvNet(classes=10), setting)


def norms(model: nn.Module) -> list[nn.Module]:
    assert isinstance(model, ConvNet)
    return list(model.features)[1::3]


@pytest.mark.parametrize("name", NORMALIZERS)
def test_every_normalizer_is_in_three_places_and_trains(name: str) -> None:
    model = applied(name)
    assert len(norms(model)) == 3
    assert not [norm for norm in norms(model) if type(norm) is nn.BatchNorm2d]
    scores = model(torch.randn(8, 1, 8, 8))
    assert scores.shape == (8, 10)
    scores.backward(torch.randn(8, 10))
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", NORMALIZERS)
def test_weights_and_the_generator_do_not_depend_on_the_normalizer(name: str) -> None:
    torch.manual_seed(3)
    plain = ConvNet(classes=10)
    state = torch.get_rng_state()
    model = applied(name)
    assert torch.equal(torch.get_rng_state(), state)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    originals = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer, original in zip(layers, originals, strict=True):
        trained = next(p for p in layer.parameters() if p.dim() > 1)  # whatever is made of it
        assert torch.equal(trained, original.weight)


def test_per_group_is_batch_norm_on_each_group_in_turn() -> None:
    grouped, single = PerGroup(nn.BatchNorm2d(2), 4), nn.BatchNorm2d(2)
    x = torch.randn(10, 2, 3, 3)
    expected = torch.cat([single(x[:4]), single(x[4:8]), single(x[8:])])
    assert torch.equal(grouped(x), expected)
    assert torch.equal(
        grouped.norm.state_dict()["running_mean"], single.state_dict()["running_mean"]
    )
    assert torch.equal(grouped.eval()(x), single.eval()(x))


def test_batch_norm_is_torchs_as_the_model_has_it() -> None:
    (layer, *_) = norms(applied("batch_norm"))
    assert isinstance(layer, PerGroup)
    assert layer.group == 4
    assert repr(layer.norm) == repr(nn.BatchNorm2d(16))
    (slow, *_) = norms(applied("slow_batch_norm"))
    assert isinstance(slow, PerGroup)
    assert repr(slow.norm) == repr(nn.BatchNorm2d(16, momentum=0.01))
    (whole, *_) = norms(applied("batch_norm", replace(SETTING, group=None)))
    assert type(whole) is nn.BatchNorm2d


def test_batch_renorm_has_the_limits_of_the_run_and_the_groups() -> None:
    (layer, *_) = norms(applied("batch_renorm"))
    assert isinstance(layer, BatchRenorm2d)
    assert (layer.limits, layer.microbatch) == (limits.over(100), 4)


def test_cross_iteration_borrows_after_a_third_of_the_run() -> None:
    (layer, *_) = norms(applied("cross_iteration"))
    assert isinstance(layer, CrossIterationBatchNorm2d)
    assert (layer.window, layer.burn_in) == (8, 33)


def test_group_norm_does_not_mix_examples() -> None:
    (layer, *_) = norms(applied("group_norm"))
    x = torch.randn(6, 16, 3, 3)
    torch.testing.assert_close(layer(x)[:2], layer(x[:2]))


def test_channel_groups_divide_the_channels() -> None:
    setting = replace(SETTING, example=torch.zeros(2, 6))
    net = NORMALIZERS["group_norm"].apply(nn.Sequential(nn.BatchNorm1d(6)), setting)
    (layer,) = net.children()
    assert isinstance(layer, nn.GroupNorm)
    assert (layer.num_groups, layer.num_channels) == (2, 6)
