import math
from typing import Any

import pytest
import torch
from torch import nn

from renorm.errors import ArgumentError
from renorm.lab.normalizers import NORMALIZERS, Setting, find
from renorm.nn.normalizers import LpBatchNorm, normalizers

THERE = [name for name in NORMALIZERS if name != "none"]
OWN = {"v", "threshold"}  # of formulas that have more to learn than weight and bias


def applied(name: str, norm: nn.BatchNorm2d) -> nn.Module:
    dtype = torch.float32 if norm.weight is None else norm.weight.dtype
    model = nn.Sequential(nn.Conv2d(3, 6, 3, dtype=dtype), norm)
    setting = Setting(4, 10, torch.zeros(2, 3, 8, 8, dtype=dtype))
    return NORMALIZERS[name].apply(model, setting).get_submodule("1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", THERE)
def test_weight_and_bias_are_the_models(name: str, dtype: torch.dtype) -> None:
    norm = nn.BatchNorm2d(6, dtype=dtype)
    weight, bias = torch.linspace(0, 1, 6, dtype=dtype), torch.linspace(-1, 1, 6, dtype=dtype)
    norm.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    assert norm.bias is not None
    norm.bias.requires_grad_(False)
    made = applied(name, norm)
    found = {key.rpartition(".")[2]: one for key, one in made.named_parameters()}
    assert all(one.dtype == dtype for one in found.values())
    assert found.keys() - OWN == {"weight", "bias"}
    assert found["weight"].requires_grad
    assert not found["bias"].requires_grad
    torch.testing.assert_close(found["weight"].detach(), weight, rtol=0, atol=0)
    torch.testing.assert_close(found["bias"].detach(), bias, rtol=0, atol=0)


@pytest.mark.parametrize("name", THERE)
def test_a_layer_without_weight_gets_none(name: str) -> None:
    made = applied(name, nn.BatchNorm2d(6, affine=False))
    assert {key.rpartition(".")[2] for key, _ in made.named_parameters()} <= OWN


def test_all_of_the_package_are_there_and_one_more() -> None:
    assert set(NORMALIZERS) - set(normalizers()) == {"slow_batch_norm"}
    assert not set(normalizers()) - set(NORMALIZERS)
    assert all(entry.about for entry in NORMALIZERS.values())


@pytest.mark.parametrize(
    ("asked", "name", "attribute", "value"),
    [
        ("group_norm(group_size=3)", "group_norm(group_size=3)", "num_groups", 2),
        ("evonorm-s0(groups=3)", "evonorm_s0(groups=3)", "groups", 3),
        ("lp_batch_norm(p=inf, eps=0.5)", "lp_batch_norm(eps=0.5, p=inf)", "p", math.inf),
        ("noisy_batch_norm(n_mu=2.0)", "noisy_batch_norm(n_mu=2.0)", "n_mu", 2.0),
        ("variance_norm(momentum=0.5)", "variance_norm(momentum=0.5)", "momentum", 0.5),
        ("weight_norm(eps=0.25)", "weight_norm(eps=0.25)", "eps", 0.25),
    ],
)
def test_options_reach_the_layers(asked: str, name: str, attribute: str, value: float) -> None:
    entry = find(asked)
    assert entry.name == name
    assert find(entry.name).name == name
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    made = entry.apply(model, Setting(None, 10, torch.zeros(2, 3, 8, 8)))
    assert getattr(made.get_submodule("1"), attribute) == value


def test_settings_of_the_model_stay_unless_they_are_given() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=0.01, momentum=0.3))
    setting = Setting(None, 10, torch.zeros(2, 3, 8, 8))
    layer: Any = NORMALIZERS["lp_batch_norm"].apply(model, setting).get_submodule("1")
    assert isinstance(layer, LpBatchNorm)
    assert (layer.eps, layer.momentum, layer.p) == (0.01, 0.3, 1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("evo_norm_b0", "There is no normalizer 'evo_norm_b0'. Did you mean 'evonorm_b0'"),
        ("evonorm_b0(groups=2)", "'evonorm_b0' has no option 'groups'. It has eps, momentum"),
        ("weight_norm(dtype='half')", "'weight_norm' has no option 'dtype'. It has eps"),
        ("none(eps=1)", "'none' has no option 'eps'. It has none"),
    ],
)
def test_unknown_names_and_options_are_answered_with_what_there_is(
    asked: str, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message.replace("(", r"\(").replace(")", r"\)")):
        find(asked)


def test_batch_renorm_is_compared_with_moving_averages_in_its_backward_pass() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6))
    entry = find("batch_renorm(backward='moving', backward_momentum=0.2)")
    layer = entry.apply(model, Setting(4, 10, torch.zeros(2, 5)))[1]  # type: ignore[index]
    assert (layer.backward, layer.backward_momentum, layer.microbatch) == ("moving", 0.2, 4)
