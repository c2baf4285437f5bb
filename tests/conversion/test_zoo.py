"""Whole models of torchvision and timm, there and back."""

import pytest
import torch
from torch import nn

from renorm import BatchRenorm2d, BatchRenormAct2d
from renorm.conversion import convert, to_batchnorm
from renorm.errors import ConversionError
from renorm.nn import BatchRenorm
from support import torchvision_shim


@pytest.fixture
def timm():
    return torchvision_shim.timm()


@pytest.fixture
def resnet18():
    return settled(torchvision_shim.torchvision_models().resnet18(weights=None))


def settled(model):
    """The model in eval mode with running statistics of a batch."""
    torch.manual_seed(0)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


@torch.no_grad()
def assert_there_and_back(model, ours):
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    classes = [type(m) for m in model.modules()]
    convert(model)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert {type(m) for m in norms} == ours
    assert torch.equal(model(x), before)
    to_batchnorm(model)
    assert [type(m) for m in model.modules()] == classes
    assert torch.equal(model(x), before)


def test_torchvision_resnet18(resnet18):
    assert_there_and_back(resnet18, {BatchRenorm2d})


def test_torchvision_resnet18_with_sync_batchnorm(resnet18):
    assert_there_and_back(nn.SyncBatchNorm.convert_sync_batchnorm(resnet18), {BatchRenorm})


def test_timm_efficientnet(timm):
    model = settled(timm.create_model("efficientnet_b0", pretrained=False))
    assert_there_and_back(model, {BatchRenormAct2d})


def test_timm_sync_batchnorm_act(timm):
    layer = timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU)
    model = timm.layers.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), layer))
    assert_there_and_back(settled(model), {BatchRenormAct2d})


def test_timm_batchnorm_act_trains_drop_and_act(timm):
    layer = timm.layers.BatchNormAct2d(4, drop_layer=nn.Dropout, act_layer=nn.ReLU)
    act, drop = layer.act, layer.drop
    convert(layer)
    y = layer(torch.randn(4, 4, 8, 8))
    assert (layer.act, layer.drop) == (act, drop)
    assert (y >= 0).all()
    assert (y == 0).float().mean() > 0.6


def test_timm_layer_without_its_activation_is_refused(timm):
    layer = timm.layers.norm_act.SyncBatchNormAct(4)
    with pytest.raises(ConversionError, match="has no drop and act"):
        convert(layer)
