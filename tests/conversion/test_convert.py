"""What becomes of the layers, and what stays."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

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
from renorm.errors import ArgumentError, ConversionError
from renorm.nn import BatchRenorm

RANKS = {
    nn.BatchNorm1d: (BatchRenorm1d, (8, 4)),
    nn.BatchNorm2d: (BatchRenorm2d, (4, 4, 3, 3)),
    nn.BatchNorm3d: (BatchRenorm3d, (3, 4, 2, 3, 3)),
    nn.SyncBatchNorm: (BatchRenorm, (8, 4, 5)),
}


def trained(layer, shape=(8, 4), steps=3):
    """The layer after some training steps, in eval mode, with parameters off their start."""
    layer.train()
    for _ in range(steps):
        layer(torch.randn(shape) * 3 + 1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


def network() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), nn.ReLU()),
        nn.ModuleDict({"a": nn.BatchNorm2d(4), "b": nn.ModuleList([nn.BatchNorm2d(4)])})["a"],
    )


def sequential(*layers) -> Any:
    return nn.Sequential(*layers)


def table(**children) -> Any:
    return nn.ModuleDict(children)


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


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


def test_state_dict_keeps_keys_and_tensors():
    model = trained(network(), (2, 3, 9, 9))
    before = {key: value.data_ptr() for key, value in model.state_dict().items()}
    convert(model)
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == before


def test_strict_loading_both_ways():
    plain, ours = network(), convert(network())
    plain.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(plain.state_dict(), strict=True)


def test_ramp_starts_now():
    model = trained(sequential(nn.BatchNorm1d(4)), steps=20)
    counter = model[0].num_batches_tracked
    convert(model, limits=limits.over(20))
    assert model[0].num_batches_tracked is counter
    assert counter == 0
    assert tuple(model[0].limits(counter)) == (1, 0)


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
    (model(torch.randn(8, 4)) ** 3).sum().backward()
    optimizer.step()
    assert kept[1] is model[1]
    assert not torch.equal(model[1].weight, before)


def test_hooks_stay():
    seen = []
    layer = nn.BatchNorm1d(4)
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_forward_pre_hook(lambda *_: seen.append("pre"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    convert(layer)(torch.randn(8, 4, requires_grad=True)).sum().backward()
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


def test_inference_tensors():
    with torch.inference_mode():
        layer = trained(nn.BatchNorm1d(4).requires_grad_(False))
        x = torch.randn(8, 4)
        before = layer(x)
    convert(layer)
    assert layer.num_batches_tracked == 0
    with torch.inference_mode():
        assert torch.equal(layer(x), before)


def test_trains_after_conversion():
    model = convert(network(), limits=limits.fixed(3, 5)).train()
    before = state(model)
    model(torch.randn(4, 3, 9, 9)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not same(state(model), before)


def test_deepcopy_converts_apart():
    model = network()
    copied = convert(copy.deepcopy(model))
    assert type(model[1]) is nn.BatchNorm2d
    assert type(copied[1]) is BatchRenorm2d


def test_compiled_model_runs_the_converted_layers():
    model = sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    compiled: Any = torch.compile(model, backend="eager")
    x = torch.randn(8, 4)
    compiled(x)
    convert(compiled, limits=limits.fixed(float("inf"), float("inf")))
    with torch.no_grad():
        model[1].running_mean.fill_(7.0)
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(compiled(x), expected)


def test_compiled_layer_runs_as_converted():
    layer = nn.BatchNorm1d(4)
    layer.compile(backend="eager")
    layer(torch.randn(8, 4))
    convert(layer, limits=limits.fixed(float("inf"), float("inf")))
    assert layer.running_mean is not None
    layer.running_mean.fill_(1e3)
    assert layer(torch.randn(8, 4)).mean() < -100


def test_model_in_ddp(tmp_path):
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(network())
        x = torch.randn(2, 3, 9, 9)
        convert(model)(x).square().mean().backward()
        assert isinstance(model.module[1], BatchRenorm2d)
        assert model.module[0].weight.grad.abs().sum() > 0
        to_batchnorm(model)(x).square().mean().backward()
        assert type(model.module[1]) is nn.BatchNorm2d
    finally:
        torch.distributed.destroy_process_group()


def test_graph_module():
    model = trained(network(), (2, 3, 9, 9))
    graph = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, 9, 9)
    before = graph(x)
    convert(graph)
    assert torch.equal(graph(x), before)
    assert isinstance(graph.get_submodule("1"), BatchRenorm2d)


def test_exported_model_has_no_layer_left():
    program = torch.export.export(trained(nn.BatchNorm1d(4)), (torch.randn(8, 4),))
    with pytest.raises(ConversionError, match=r"exported .* converted before"):
        convert(program.module())


def test_no_norm_layer():
    with pytest.raises(ConversionError, match="Linear has no batch norm layer"):
        convert(nn.Linear(3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 1e-3}, "no option eps; there are momentum, limits.*eps stay"),
        ({"limit": 3}, "no option limit; there are momentum"),
        ({"limits": (3, 5)}, "limits is called with the step"),
        ({"microbatch": 0}, "microbatch"),
        ({"momentum": 2}, "momentum"),
        ({"kernel": "none such"}, "no kernel"),
        ({"to": "group_norm"}, "to is 'batch_renorm' or a callable"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_option_changes_nothing(options, message):
    model = network()
    with pytest.raises(ArgumentError, match=message):
        convert(model, **options)
    assert type(model[1]) is nn.BatchNorm2d
    assert model[1].momentum == 0.1


class Other(nn.BatchNorm1d):
    def forward(self, input):
        return 2 * super().forward(input)


class KeepsEval(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


class Unknown(nn.modules.batchnorm._BatchNorm):
    pass


class Trivial(nn.BatchNorm1d):
    """Changes its construction alone."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3)
        self.note = "mine"

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.weight)


def with_forward_on_the_instance():
    layer = nn.BatchNorm1d(4)
    layer.forward = partial(nn.BatchNorm1d.forward, layer)
    return layer


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Other(4), r"Other\) defines its own forward"),
        (lambda: KeepsEval(4), r"KeepsEval\) defines its own train"),
        (lambda: Unknown(4), r"Unknown\) is none of torch's"),
        (with_forward_on_the_instance, r"forward \(set on the instance\)"),
        (lambda: nn.BatchNorm1d(4, eps=0), "has eps=0"),
    ],
    ids=["forward", "train", "unknown", "instance", "eps"],
)
def test_refused_by_name(make, why):
    model = sequential(nn.BatchNorm1d(4), nn.Sequential(make()))
    with pytest.raises(ConversionError, match=r"1\.0 \(.*" + why):
        convert(model)
    assert type(model[0]) is nn.BatchNorm1d
    convert(model, exclude="1.*")
    assert type(model[0]) is BatchRenorm1d
    assert not isinstance(model[1][0], BatchRenorm)


def test_every_refused_layer_is_listed():
    shared = Other(4)
    model = table(a=shared, b=KeepsEval(4), c=sequential(shared))
    with pytest.raises(ConversionError) as caught:
        convert(model)
    text = str(caught.value)
    assert "a = c.0 (" in text
    assert "\n  b (" in text
    assert "exclude=" in text
    assert "to=callable" in text


def test_trivial_subclass_there_and_back():
    layer = Trivial(4)
    assert type(convert(layer)) is BatchRenorm1d
    assert layer.note == "mine"
    assert type(to_batchnorm(layer)) is Trivial
    assert layer.note == "mine"
