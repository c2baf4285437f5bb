"""Nets of any depth and width, and their names."""

from typing import Any

import pytest
import torch
from torch import nn

from renorm.errors import ArgumentError
from renorm.lab import models
from renorm.lab.models import DeepNet


def shapes(net: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(m.weight.shape) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 5), (6,), (2, 3)])
def test_inputs_of_any_shape(shape: tuple[int, ...], residual: bool) -> None:
    net = DeepNet(shape, 4, depth=3, width=8, residual=residual)
    assert net(torch.randn(5, *shape)).shape == (5, 4)


def test_stages_halve_the_resolution_and_double_the_channels() -> None:
    net = DeepNet((3, 8, 8), 4, depth=7, width=8, stages=3)
    strides = [m.stride[0] for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [shape[0] for shape in shapes(net)[:-1]] == [8, 8, 8, 16, 16, 32, 32]
    assert strides == [1, 1, 1, 2, 1, 2, 1]
    assert net.features(torch.randn(2, 3, 8, 8)).shape == (2, 32, 2, 2)


def test_residual_stages() -> None:
    net = DeepNet((3, 7, 7), 4, depth=3, width=4, residual=True, stages=3)
    assert net.features(torch.randn(2, 3, 7, 7)).shape == (2, 16, 2, 2)
    assert len(shapes(net)) == 1 + 2 * 3 + 1


def test_a_skip_is_the_input_itself() -> None:
    net: Any = DeepNet((6,), 4, depth=2, width=6, residual=True, normalizer="none")
    for parameter in net.features[2].parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(3, 6)
    assert torch.equal(net.features[2](x), x)


def test_weights_have_he_variance() -> None:
    torch.manual_seed(0)
    net = DeepNet((3, 8, 8), 4, depth=2, width=64)
    last = [m for m in net.modules() if isinstance(m, nn.Conv2d)][-1]
    # the variance of 64 * 64 * 9 values has the relative deviation sqrt(2 / 36864) = 0.007
    assert float(last.weight.detach().var()) == pytest.approx(2 / (64 * 9), rel=0.03)


@pytest.mark.parametrize("name", ["layer_norm", "evonorm_s0", "weight_norm", "none"])
@pytest.mark.parametrize("residual", [False, True])
def test_any_normalizer(name: str, residual: bool) -> None:
    net = DeepNet((3, 6, 6), 4, depth=2, width=32, normalizer=name, residual=residual)
    y = net(torch.randn(4, 3, 6, 6))
    y.backward(torch.randn_like(y))
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth counts hidden layers, or residual blocks, at least 1, got 0"),
        ({"depth": 2.0}, "got 2.0"),
        ({"width": True}, "width counts .* got True"),
        ({"stages": 0}, "stages counts"),
        ({"stages": 5, "depth": 9}, r"\(3, 8, 8\) has at most 4 stages, .* got 5"),
        ({"stages": 4}, "depth 3 .* at most 3 stages"),
        ({"shape": (9,), "stages": 2}, "at most 1 stages"),
        ({"normalizer": "bach_norm"}, "Did you mean 'batch_norm'"),
        ({"normalizer": "group_norm", "options": {"group_size": 7}}, "7"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"shape": (3, 8, 8), "outputs": 4, "depth": 3, "width": 8} | change
    with pytest.raises(ArgumentError, match=message):
        DeepNet(given.pop("shape"), given.pop("outputs"), **given)


def test_names_with_options() -> None:
    entry = models.find("residual( width = 8, depth=2)")
    assert entry.name == "residual(depth=2, width=8)"
    net = entry.build((3, 8, 8), 4)
    assert [shape[0] for shape in shapes(net)] == [8] * 5 + [4]
    assert models.find("vgg") is models.MODELS["vgg"]


def test_names_of_the_nets_of_a_task() -> None:
    nets = ("of_its_own", "plain")
    assert models.named("of-its-own", nets) == "of_its_own"
    assert models.named("plain(width=8, depth=2)", nets) == "plain(depth=2, width=8)"
    with pytest.raises(ArgumentError, match=r"no option 'depth'\. It has none"):
        models.named("of_its_own(depth=2)", nets)
    with pytest.raises(ArgumentError, match="There are of_its_own, plain"):
        models.named("vgg", nets)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plane", "Did you mean 'plain'"),
        ("plain(size=3)", "no option 'size'. It has depth, width, stages"),
        ("vgg(depth=3)", "no option 'depth'. It has none"),
        ("plain(3)", "by name"),
        ("plain(depth=", "by name"),
        ("plain(depth=two)", "by name"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        models.find(name)
