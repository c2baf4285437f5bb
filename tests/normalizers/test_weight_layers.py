"""Weight Norm and Scaled Weight Standardization: values, gradients, statistics, precision."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from renorm import reference
from renorm.nn.normalizers import ScaledWeightStandardization, WeightBased, WeightNorm

LAYERS = [WeightNorm, ScaledWeightStandardization]
SOURCES: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: nn.Linear(5, 6), (7, 5)),
    (lambda: nn.Conv1d(4, 6, 3, bias=False), (3, 4, 8)),
    (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5)),
    (lambda: nn.Conv2d(4, 6, (1, 2), groups=2, bias=False), (2, 4, 5, 5)),
    (lambda: nn.Conv3d(2, 6, 2, stride=2, bias=False), (2, 2, 4, 4, 4)),
]
IDS = ["linear", "conv1d", "conv2d", "grouped", "conv3d"]
EXACT = {
    WeightNorm: (reference.weight_norm, reference.weight_norm_backward),
    ScaledWeightStandardization: (
        reference.scaled_weight_standardization,
        reference.scaled_weight_standardization_backward,
    ),
}


def paired(cls: type[WeightBased], make: Any, **options: Any) -> nn.Sequential:
    """A source and its layer, with parameters drawn at random, in float64."""
    torch.manual_seed(0)
    source = make().double()
    layer = cls(6, dtype=torch.float64, **options)
    layer.pair(source)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(6) + 0.5)
    return nn.Sequential(source, layer)


def trained(source: nn.Module) -> Any:
    lists: Any = source.parametrizations
    return lists["weight"].original


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize(("make", "shape"), SOURCES, ids=IDS)
def test_gradients_are_those_of_the_reference(
    cls: type[WeightBased], make: Any, shape: tuple[int, ...]
) -> None:
    """What is given to the source is the reference's, and what comes back is pulled through it."""
    net = paired(cls, make)
    source: Any = net[0]
    layer: Any = net[1]
    forward, backward = EXACT[cls]
    rows = trained(source).detach().flatten(1).numpy()
    gains = layer.weight.detach().numpy()
    weights = torch.tensor(forward(rows, gains, layer.eps)).view_as(source.weight)
    plain: Any = make().double()
    plain.load_state_dict(
        {"weight": weights, **({} if source.bias is None else {"bias": source.bias})}
    )
    x = torch.randn(shape, dtype=torch.float64)
    before = plain(x) + layer.bias.detach().view(-1, *[1] * (len(shape) - 2))
    dy = torch.randn_like(before)
    y, da = before.detach().numpy(), dy.numpy()
    if layer.activates:
        y, da = reference.corrected_relu(y), reference.corrected_relu_backward(da, y)
    before.backward(torch.tensor(da))
    d_weight, d_gain = backward(plain.weight.grad.flatten(1).numpy(), rows, gains, layer.eps)
    ours = net(x)
    ours.backward(dy)
    # float64, a few hundred terms of size 1 to 10
    close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    close(ours.detach().numpy(), y)
    close(trained(source).grad.flatten(1).numpy(), d_weight)
    close(layer.weight.grad.numpy(), d_gain)
    dims = (0, *range(2, len(shape)))
    close(layer.bias.grad.numpy(), da.sum(dims))


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize(("make", "shape"), SOURCES, ids=IDS)
def test_gradcheck(cls: type[WeightBased], make: Any, shape: tuple[int, ...]) -> None:
    net = paired(cls, make)
    names, values = zip(*net.named_parameters(), strict=True)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        y = functional_call(net, dict(zip(names, parameters, strict=True)), (x,))
        assert isinstance(y, Tensor)
        return y

    assert torch.autograd.gradcheck(run, (x, *values))


def _variance_error(outputs: int) -> float:
    """The standard error of the variance of so many corrected ReLUs of a unit Gaussian."""
    first, second = 1 / math.sqrt(2 * math.pi), 1 / 2  # raw moments of the ReLU
    third, fourth = 2 / math.sqrt(2 * math.pi), 3 / 2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    kurtosis = central / (second - first**2) ** 2
    return math.sqrt((kurtosis - 1) / outputs)


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(48, 6), lambda: nn.Conv2d(96, 6, 1, groups=2)], ids=["linear", "g"]
)
def test_the_relu_of_unit_gaussians_has_variance_one(cls: type[WeightBased], make: Any) -> None:
    """Each channel, with five standard errors of slack; weights of any mean and size."""
    torch.manual_seed(0)
    source = make()
    with torch.no_grad():
        source.weight.mul_(30).add_(1)
        source.bias.zero_()
    layer = cls(6)
    layer.pair(source)
    n = 100_000
    inputs = source.weight.shape[1] * getattr(source, "groups", 1)
    x = torch.randn(n, inputs)[(..., *[None] * (source.weight.dim() - 2))]
    with torch.no_grad():
        y = layer(source(x)).flatten(1)
        y = y if layer.activates else y.relu()
    slack = 5 * _variance_error(n) + 2e-3  # eps makes filters of norm 0.6 smaller by 2e-5 or less
    assert ((y.var(0) - 1).abs() < slack).all()
    if layer.activates:
        assert (y.mean(0).abs() < 5 / math.sqrt(n) + 1e-4).all()


def test_an_input_that_all_weights_share_drops_out_of_standardized_ones() -> None:
    net = paired(ScaledWeightStandardization, lambda: nn.Linear(5, 6))
    x = torch.randn(7, 5, dtype=torch.float64)
    torch.testing.assert_close(net(x + 3), net(x), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("cls", LAYERS)
def test_a_filter_without_size_gives_zeros_and_finite_gradients(cls: type[WeightBased]) -> None:
    source = nn.Linear(4, 6, bias=False)
    with torch.no_grad():
        source.weight[1] = 0
        source.weight[2] = 0.25
    layer = cls(6)
    layer.pair(source)
    assert torch.equal(source.weight[1], torch.zeros(4))
    y = layer(source(torch.randn(3, 4)))
    y.backward(torch.randn_like(y))
    original = trained(source).grad
    assert original is not None
    assert original.isfinite().all()


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(cls: type[WeightBased], dtype: torch.dtype) -> None:
    """Modules in half precision give their dtype, within its rounding of the float64 result."""
    net = paired(cls, lambda: nn.Linear(5, 6))
    x = torch.randn(7, 5, dtype=torch.float64)
    exact = net(x)
    half = net.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    # a product of 5 terms of size up to 9, then four roundings of values of that size
    torch.testing.assert_close(half.double(), exact, rtol=0, atol=9 * 9 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("cls", LAYERS)
def test_under_autocast_the_weights_are_normalized_in_full_precision(
    cls: type[WeightBased],
) -> None:
    net = paired(cls, lambda: nn.Linear(5, 6)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        source: Any = net[0]
        assert source.weight.dtype == torch.float32
        assert net(torch.randn(7, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("cls", LAYERS)
def test_train_and_eval_are_the_same_and_examples_apart(cls: type[WeightBased]) -> None:
    net = paired(cls, lambda: nn.Linear(5, 6))
    x = torch.randn(7, 5, dtype=torch.float64)
    y = net(x)
    assert torch.equal(net.eval()(x), y)
    torch.testing.assert_close(net(x[2:3]), y[2:3], rtol=1e-12, atol=1e-12)
