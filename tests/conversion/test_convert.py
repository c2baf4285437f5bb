"""What becomes of the layers, and their eval outputs."""

from typing import Any

import pytest
import torch
from torch import nn

from renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    LazyBatchRenorm1d,
    LazyBatchRenorm2d,
    LazyBatchRenorm3d,
    limits,
)
from renorm.conversion import convert, to_batchnorm
from renorm.nn import BatchRenorm
from support.networks import network, same, sequential, state, table, trained

RANKS = {
    nn.BatchNorm1d: (BatchRenorm1d, (8, 4)),
    nn.BatchNorm2d: (BatchRenorm2d, (4, 4, 3, 3)),
    nn.BatchNorm3d: (BatchRenorm3d, (3, 4, 2, 3, 3)),
    nn.SyncBatchNorm: (BatchRenorm, (8, 4, 5)),
}


@pytest.mark.parametrize("torch_class", RANKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_each_class_eval_is_bitwise_equal(torch_class, affine):
    ours, shape = RANKS[torch_class]
    layer = trained(torch_class(4, affine=affine), shape)
    x = torch.randn(shape)
    before = layer(x)
    convert(layer)
    assert type(layer) is ours
    assert torch.equal(layer(x), before)
    to_batchnorm(layer)
    assert type(layer) is torch_class
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_stays_and_eval_is_bitwise_equal(dtype):
    model = trained(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))).to(dtype)
    x = torch.randn(6, 4, dtype=dtype)
    before = model(x)
    assert torch.equal(convert(model)(x), before)
    assert {t.dtype for t in model.state_dict().values()} == {dtype, torch.int64}


def test_whole_tree_is_converted():
    model = network()
    convert(model)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [type(m) for m in norms] == [BatchRenorm2d] * 3


def test_nested_containers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = table(a=nn.ModuleList([nn.Sequential(nn.BatchNorm1d(2))]))
            self.root_norm = nn.BatchNorm3d(2)

    model = convert(Net())
    assert isinstance(model.table["a"][0][0], BatchRenorm1d)
    assert isinstance(model.root_norm, BatchRenorm3d)


def test_ramp_starts_now():
    model = trained(sequential(nn.BatchNorm1d(4)), steps=20)
    counter = model[0].num_batches_tracked
    convert(model, limits=limits.over(20))
    assert model[0].num_batches_tracked is counter
    assert counter == 0
    assert tuple(model[0].limits(counter)) == (1, 0)


@pytest.mark.parametrize(
    ("lazy", "ours", "ready", "shape"),
    [
        (nn.LazyBatchNorm1d, LazyBatchRenorm1d, BatchRenorm1d, (8, 4)),
        (nn.LazyBatchNorm2d, LazyBatchRenorm2d, BatchRenorm2d, (4, 4, 3, 3)),
        (nn.LazyBatchNorm3d, LazyBatchRenorm3d, BatchRenorm3d, (2, 4, 3, 3, 3)),
    ],
)
def test_lazy_layer(lazy, ours, ready, shape):
    model = convert(sequential(lazy()), limits=limits.fixed(2, 1))
    assert type(model[0]) is ours
    model(torch.randn(shape))
    assert type(model[0]) is ready
    assert model[0].limits == limits.fixed(2, 1)
    assert type(to_batchnorm(model)[0]) is lazy.cls_to_become


def test_lazy_layer_back_before_its_first_input():
    model = to_batchnorm(convert(sequential(nn.LazyBatchNorm1d())))
    assert type(model[0]) is nn.LazyBatchNorm1d
    model(torch.randn(8, 4))
    assert type(model[0]) is nn.BatchNorm1d


def test_initialized_lazy_layer():
    model = sequential(nn.LazyBatchNorm1d())
    model(torch.randn(8, 4))
    assert type(convert(model)[0]) is BatchRenorm1d


def test_sync_batchnorm_model():
    make: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    model = make(trained(network(), (2, 3, 9, 9)))
    model[1].process_group = group = object()
    x = torch.randn(2, 3, 9, 9)
    before = model(x)
    assert type(convert(model)[1]) is BatchRenorm
    assert torch.equal(model(x), before)
    assert type(to_batchnorm(model)[1]) is nn.SyncBatchNorm
    assert model[1].process_group is group
    assert torch.equal(model(x), before)


def test_root_is_a_layer():
    layer = nn.BatchNorm1d(4)
    assert convert(layer) is layer
    assert type(layer) is BatchRenorm1d


def test_options_reach_every_layer():
    options = {"limits": limits.fixed(2, 1), "microbatch": 2, "single": "running"}
    model = convert(network(), **options, kernel="aten", momentum=None)
    for layer in (m for m in model.modules() if isinstance(m, BatchRenorm)):
        assert {name: getattr(layer, name) for name in options} == options
        assert (layer.kernel, layer.momentum) == ("aten", None)


def test_momentum_becomes_the_papers_and_eps_stays():
    layer = convert(nn.BatchNorm1d(4, eps=1e-3, momentum=0.1))
    assert (layer.momentum, layer.eps) == (0.01, 1e-3)


def test_converted_layers_are_left_alone():
    model = sequential(nn.BatchNorm1d(4), BatchRenorm1d(4, limits=limits.fixed(2, 1)))
    trained(model)
    convert(model, limits=limits.fixed(3, 5))
    assert [m.limits for m in model] == [limits.fixed(3, 5), limits.fixed(2, 1)]
    assert [int(m.num_batches_tracked) for m in model] == [0, 3]
    convert(model, limits=limits.paper())
    assert model[0].limits == limits.fixed(3, 5)


def test_other_norms_are_left_alone():
    others = [nn.InstanceNorm1d(4, track_running_stats=True), nn.GroupNorm(2, 4), nn.LayerNorm(4)]
    model = convert(sequential(*others, nn.BatchNorm1d(4)))
    assert list(model[:3]) == others
    assert [type(m) for m in model[:3]] == [nn.InstanceNorm1d, nn.GroupNorm, nn.LayerNorm]


def test_without_running_statistics_it_is_batch_norm():
    layer = nn.BatchNorm1d(4, track_running_stats=False)
    x = torch.randn(8, 4)
    before = layer(x)
    convert(layer, limits=limits.fixed(3, 5))
    torch.testing.assert_close(layer(x), before)
    torch.testing.assert_close(layer.eval()(x), before)


def test_statistics_that_are_no_longer_tracked():
    layer = trained(nn.BatchNorm1d(4))
    layer.track_running_stats = False
    x = torch.randn(8, 4)
    before = layer(x)
    assert torch.equal(convert(layer)(x), before)
    assert not layer.track_running_stats


def test_trains_after_conversion():
    model = convert(network(), limits=limits.fixed(3, 5)).train()
    before = state(model)
    model(torch.randn(4, 3, 9, 9)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not same(state(model), before)
