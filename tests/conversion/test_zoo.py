"""Whole models of torchvision and timm, there and back."""

import copy

import pytest
import torch
from torch import nn

from renorm import BatchRenorm2d, BatchRenormAct2d, fuse
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


def test_timm_vovnet_with_relu_is_fused(timm):
    model = settled(timm.create_model("ese_vovnet19b_slim_dw", pretrained=False))
    assert_there_and_back(model, {BatchRenormAct2d})
    composed = convert(model)
    fused = copy.deepcopy(model)
    layers = [m for m in fused.modules() if isinstance(m, BatchRenormAct2d)]
    assert layers
    assert all(layer.fused for layer in layers)
    for module in composed.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda *_: None)
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused.train()(x), composed.train()(x), rtol=1e-3, atol=1e-4)
        assert torch.equal(fused.eval()(x), composed.eval()(x))


def test_torchvision_shufflenet_is_fused_and_comes_back():
    model = settled(torchvision_shim.torchvision_models().shufflenet_v2_x0_5(weights=None))
    x = torch.randn(2, 3, 64, 64)
    classes = [type(m) for m in model.modules()]
    with torch.no_grad():
        before = model(x)
        fuse(convert(model))
        kinds = [type(m) for m in model.modules()]
        assert kinds.count(BatchRenormAct2d) == classes.count(nn.ReLU)
        assert torch.equal(model(x), before)
        to_batchnorm(model)
        assert torch.equal(model(x), before)
    assert [type(m) for m in model.modules()] == classes


def test_timm_sync_batchnorm_act(timm):
    layers = [timm.layers.BatchNormAct2d(4, act_layer=act) for act in (nn.SiLU, nn.ReLU)]
    model = timm.layers.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), *layers))
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
