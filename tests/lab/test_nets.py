import pytest
import torch
from torch import nn

from renorm import BatchRenorm2d, limits
from renorm.lab.models import ConvNet
from renorm.lab.normalizers import NORMALIZERS, PerGroup


@pytest.mark.parametrize("name", NORMALIZERS)
def test_every_normalizer_is_in_three_places_and_trains(name: str) -> None:
    made = []

    def norm(channels: int) -> nn.Module:
        made.append(channels)
        return NORMALIZERS[name].build(channels, 4, 100)

    model = ConvNet(norm, classes=10)
    scores = model(torch.randn(8, 1, 8, 8))
    assert scores.shape == (8, 10)
    assert made == [16, 32, 64]
    scores.backward(torch.randn(8, 10))
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_weights_do_not_depend_on_what_the_norm_draws() -> None:
    def drawing(channels: int) -> nn.Module:
        torch.rand(channels)
        return nn.Identity()

    nets = []
    for norm in (drawing, lambda channels: nn.Identity()):
        torch.manual_seed(3)
        nets.append(ConvNet(norm, classes=10).state_dict())
    assert nets[0].keys() == nets[1].keys()
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])


def test_per_group_is_batch_norm_on_each_group_in_turn() -> None:
    grouped, single = PerGroup(nn.BatchNorm2d(2), 4), nn.BatchNorm2d(2)
    x = torch.randn(10, 2, 3, 3)
    expected = torch.cat([single(x[:4]), single(x[4:8]), single(x[8:])])
    assert torch.equal(grouped(x), expected)
    assert torch.equal(
        grouped.norm.state_dict()["running_mean"], single.state_dict()["running_mean"]
    )
    assert torch.equal(grouped.eval()(x), single.eval()(x))


def test_batch_norm_is_torch_with_its_defaults() -> None:
    layer = NORMALIZERS["batch_norm"].build(8, 4, 100)
    assert isinstance(layer, PerGroup)
    assert layer.group == 4
    assert repr(layer.norm) == repr(nn.BatchNorm2d(8))
    slow = NORMALIZERS["slow_batch_norm"].build(8, 4, 100)
    assert isinstance(slow, PerGroup)
    assert repr(slow.norm) == repr(nn.BatchNorm2d(8, momentum=0.01))


def test_batch_renorm_has_the_limits_of_the_run_and_the_groups() -> None:
    layer = NORMALIZERS["batch_renorm"].build(8, 4, 100)
    assert isinstance(layer, BatchRenorm2d)
    assert (layer.limits, layer.microbatch) == (limits.over(100), 4)


def test_group_norm_does_not_mix_examples() -> None:
    layer = NORMALIZERS["group_norm"].build(8, 4, 100)
    x = torch.randn(6, 8, 3, 3)
    torch.testing.assert_close(layer(x)[:2], layer(x[:2]))
