"""What a conversion must not touch."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

from renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
)
from renorm.conversion import convert, to_batchnorm
from support.networks import network, sequential, table, trained


def test_state_dict_keeps_keys_and_tensors():
    model = trained(network(), (2, 3, 9, 9))
    before = {key: value.data_ptr() for key, value in model.state_dict().items()}
    convert(model)
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == before


def test_strict_loading_both_ways():
    plain, ours = network(), convert(network())
    plain.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(plain.state_dict(), strict=True)


def test_shared_module_stays_one():
    norm = nn.BatchNorm1d(4)
    model = table(a=sequential(norm), b=sequential(nn.Linear(4, 4), norm))
    convert(model)
    assert model["a"][0] is model["b"][1] is norm
    assert type(norm) is BatchRenorm1d


def test_tied_parameters_stay_tied():
    model = sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    convert(model)
    assert model[0].weight is model[1].weight
    assert to_batchnorm(model)[0].weight is model[1].weight


def test_optimizer_and_lists_keep_their_references():
    model = sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    kept, optimizer = list(model), torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model)
    before = model[1].weight.detach().clone()
    model(torch.randn(8, 4)).backward(torch.randn(8, 4))
    optimizer.step()
    assert kept[1] is model[1]
    assert not torch.equal(model[1].weight, before)


def test_hooks_stay():
    seen = []
    layer = nn.BatchNorm1d(4)
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_forward_pre_hook(lambda *_: seen.append("pre"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    y = convert(layer)(torch.randn(8, 4, requires_grad=True))
    y.backward(torch.randn(8, 4))
    assert seen == ["pre", "forward", "backward"]


def test_requires_grad_and_training_flags_stay():
    model = sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)).train()
    model[1].eval()
    model[2].weight.requires_grad_(False)
    convert(model)
    assert [m.training for m in model] == [True, False, True]
    assert [m.weight.requires_grad for m in model] == [True, True, False]
    to_batchnorm(model)
    assert [m.training for m in model] == [True, False, True]
    assert [m.weight.requires_grad for m in model] == [True, True, False]


def test_device_stays():
    model = convert(sequential(nn.BatchNorm1d(4, device="meta")))
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}


def test_parametrized_layer():
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    layer = nn.BatchNorm1d(4)
    parametrize.register_parametrization(layer, "weight", Double())
    trained(layer)
    x = torch.randn(8, 4)
    before = layer(x)
    assert isinstance(convert(layer), BatchRenorm1d)
    assert type(layer).__name__ == "ParametrizedBatchRenorm1d"
    assert torch.equal(layer(x), before)
    assert torch.equal(copy.deepcopy(layer)(x), before)
    assert torch.equal(to_batchnorm(layer)(x), before)
    assert parametrize.type_before_parametrizations(layer) is nn.BatchNorm1d
    parametrize.remove_parametrizations(convert(layer), "weight")
    assert type(layer) is BatchRenorm1d
    assert torch.equal(layer(x), before)


def test_two_layers_parametrized_apart_stay_apart():
    first, second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    parametrize.register_parametrization(first, "weight", nn.Tanh())
    parametrize.register_parametrization(second, "bias", nn.Tanh())
    model = convert(sequential(first, second))
    assert [parametrize.is_parametrized(m, "weight") for m in model] == [True, False]
    assert model[0].weight.abs().max() < 1
    assert model(torch.randn(8, 4)).shape == (8, 4)


def test_inference_tensors():
    with torch.inference_mode():
        layer = trained(nn.BatchNorm1d(4).requires_grad_(False))
        x = torch.randn(8, 4)
        before = layer(x)
    convert(layer)
    assert layer.num_batches_tracked == 0
    with torch.inference_mode():
        assert torch.equal(layer(x), before)


def test_deepcopy_converts_apart():
    model = network()
    copied = convert(copy.deepcopy(model))
    assert type(model[1]) is nn.BatchNorm2d
    assert type(copied[1]) is BatchRenorm2d
