"""Weight-based normalizers and their sources: pairing, copies, saved states, removal."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from renorm.errors import ArgumentError, RenormError
from renorm.nn.normalizers import ScaledWeightStandardization, WeightBased, WeightNorm

LAYERS = pytest.mark.parametrize("cls", [WeightNorm, ScaledWeightStandardization])


def made(cls: type[WeightBased], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    source, layer = nn.Conv2d(3, 4, 3, bias=False), cls(4)
    layer.pair(source)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(4))
    return nn.Sequential(source, layer)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(5))


@LAYERS
def test_an_unpaired_layer_says_what_to_call(cls: type[WeightBased]) -> None:
    with pytest.raises(RenormError, match=r"Call pair\(layer\) once"):
        cls(4)(images()[:, :1].expand(2, 4, 5, 5))
    with pytest.raises(RenormError, match="Call pair"):
        cls(4).fold()


@LAYERS
def test_a_layer_and_a_source_are_paired_once(cls: type[WeightBased]) -> None:
    source, layer = nn.Linear(3, 4), cls(4)
    layer.pair(source)
    with pytest.raises(ArgumentError, match=r"is paired with Linear\(.*\) already"):
        layer.pair(source)
    with pytest.raises(ArgumentError, match=r"is paired with Linear\(.*\) already"):
        layer.pair(nn.Linear(3, 4))
    second = WeightNorm(4)
    with pytest.raises(
        ArgumentError, match=rf"Linear\(.*\), which is paired with another {cls.__name__} already"
    ):
        second.pair(source)
    assert second.source is None
    parametrized: Any = source.parametrizations
    assert len(parametrized["weight"]) == 1


@LAYERS
@pytest.mark.parametrize(
    ("source", "why"),
    [
        (nn.Linear(3, 5), "gives 5 channels, and the norm takes 4"),
        (nn.Linear(3, 4, dtype=torch.float64), r"torch.float64 on cpu, .*torch.float32 on cpu"),
        (nn.Linear(3, 4, device="meta"), "on meta, while this layer is torch.float32 on cpu"),
        (nn.ConvTranspose2d(3, 4, 1), "transposed convolution cannot be a source"),
        (nn.BatchNorm1d(4), "a source is an nn.Linear or an nn.Conv1d"),
        (nn.LazyLinear(4), "is lazy"),
        (parametrizations.weight_norm(nn.Linear(3, 4)), "has no parameter of its own"),
    ],
    ids=["channels", "dtype", "device", "transposed", "kind", "lazy", "computed"],
)
def test_other_sources_are_refused_and_left_alone(
    cls: type[WeightBased], source: nn.Module, why: str
) -> None:
    layer, before = cls(4), str(source)
    with pytest.raises(ArgumentError, match=why):
        layer.pair(source)  # type: ignore[arg-type]
    assert layer.source is None
    assert str(source) == before


def test_filters_of_one_weight_cannot_be_standardized() -> None:
    source = nn.Conv2d(4, 4, 1, groups=4)
    with pytest.raises(ArgumentError, match="one weight each"):
        ScaledWeightStandardization(4).pair(source)
    WeightNorm(4).pair(source)


@LAYERS
def test_bad_settings_are_refused(cls: type[WeightBased]) -> None:
    for channels in (0, -1, 2.0, True):
        with pytest.raises(ArgumentError, match="num_features is the number of channels"):
            cls(channels)  # type: ignore[arg-type]
    for eps in (0.0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="eps must be positive"):
            cls(4, eps=eps)


@LAYERS
def test_inputs_of_other_channels_are_refused(cls: type[WeightBased]) -> None:
    net = made(cls)
    with pytest.raises(ArgumentError, match="4 channels in dimension 1"):
        net[1](torch.zeros(2, 3, 5, 5))


@LAYERS
def test_the_parameter_that_an_optimizer_has_goes_on_being_trained(cls: type[WeightBased]) -> None:
    torch.manual_seed(0)
    source, layer = nn.Linear(3, 4), cls(4)
    weight = source.weight
    optimizer = torch.optim.SGD([weight, *layer.parameters()], lr=0.5)
    layer.pair(source)
    before = source.weight.detach().clone()
    y = layer(source(torch.randn(6, 3)))
    y.backward(torch.randn_like(y))
    optimizer.step()
    assert not torch.equal(source.weight, before)
    layer.fold()
    assert source.weight is weight


@LAYERS
def test_state_is_batch_norms_names_and_the_sources_original(cls: type[WeightBased]) -> None:
    net, other = made(cls), made(cls, seed=1)
    assert list(net.state_dict()) == ["0.parametrizations.weight.original", "1.weight", "1.bias"]
    assert not torch.equal(other(images()), net(images()))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(images()), net(images()))


@LAYERS
def test_a_copy_of_the_net_trains_apart(cls: type[WeightBased]) -> None:
    net = made(cls)
    before = net(images()).detach()
    twin = copy.deepcopy(net)
    assert torch.equal(twin(images()), before)
    layer: Any = twin[1]
    assert layer.source is twin[0]
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(net(images()), before)
    assert not torch.equal(twin(images()), before)


@LAYERS
def test_folding_leaves_outputs_and_copies_as_they_were(cls: type[WeightBased]) -> None:
    net = made(cls)
    twin, y = copy.deepcopy(net), net(images()).detach()
    source: Any = net[0]
    layer: Any = net[1]
    weight = source.weight.detach().clone()
    layer.fold()
    assert torch.equal(net(images()), y)
    assert torch.equal(source.weight, weight)
    assert not parametrize.is_parametrized(source)
    assert type(source) is nn.Conv2d
    assert list(net.state_dict()) == ["0.weight", "1.bias"]
    assert "folded" in repr(layer)
    layer.fold()
    with pytest.raises(ArgumentError, match="was folded: make a new one"):
        layer.pair(source)
    assert torch.equal(twin(images()), y)
    pickled = pickle.loads(pickle.dumps(net))
    assert torch.equal(pickled(images()), y)


@LAYERS
def test_a_paired_net_is_pickled_by_its_state_alone_as_torch_has_it(
    cls: type[WeightBased],
) -> None:
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(made(cls))
    layer = pickle.loads(pickle.dumps(cls(4)))  # unpaired: like any layer
    layer.pair(nn.Linear(3, 4))


@LAYERS
def test_a_parametrization_removed_from_outside_is_noticed(cls: type[WeightBased]) -> None:
    net = made(cls)
    parametrize.remove_parametrizations(net[0], "weight")
    with pytest.raises(RenormError, match=r"removed from outside\. Call fold\(\) instead"):
        net(images())


@LAYERS
def test_without_gains_and_bias(cls: type[WeightBased]) -> None:
    layer, source = cls(4, affine=False), nn.Linear(3, 4, bias=False)
    assert not list(layer.parameters())
    layer.pair(source)
    assert layer(source(torch.randn(2, 3))).shape == (2, 4)


@LAYERS
def test_compiled_into_one_graph(cls: type[WeightBased]) -> None:
    net = made(cls)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images()), net(images()))
