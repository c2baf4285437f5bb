"""The conventions of l_p batch norm, and that p = 2 is nn.BatchNorm."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from renorm.nn import LpBatchNorm, NoisyBatchNorm
from support.tolerance import assert_close


def _pair(momentum: float | None, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    ours = LpBatchNorm(5, p=2, momentum=momentum, dtype=dtype)
    theirs = nn.BatchNorm2d(5, momentum=momentum, dtype=dtype)
    with torch.no_grad():
        for p in theirs.parameters():
            p.uniform_(0.5, 1.5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def _batches(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for size in (4, 7, 1):
        x = 2 + 3 * torch.randn(size, 5, 6, 6, dtype=dtype)
        yield x, torch.randn_like(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_second_norm_is_batch_norm(momentum: float | None, dtype: torch.dtype) -> None:
    ours, theirs = _pair(momentum, dtype)
    for x, dy in _batches(dtype):
        results = []
        for layer in (ours, theirs):
            given = x.clone().requires_grad_()
            layer.zero_grad()
            y = layer(given)
            y.backward(dy)
            results.append((y.detach(), given.grad, *(p.grad for p in layer.parameters())))
        for i, (a, b) in enumerate(zip(*results, strict=True)):
            # sums over all values of products of about 1; two layers, so two errors
            scale = float(dy.abs().sum()) if i > 1 else 2 * float(b.abs().max())
            assert_close("result", a, b.double(), dtype, scale=scale, offset=2)
    for (name, a), (other, b) in zip(
        ours.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert name == other
        assert_close(name, a.double(), b.double(), dtype, scale=2 * float(b.abs().max()))
    x, _ = next(_batches(dtype))
    y, native = ours.eval()(x).detach(), theirs.eval()(x).detach()
    assert_close("eval", y, native.double(), dtype, scale=2 * float(native.abs().max()))


def test_state_of_second_norm_loads_into_batch_norm() -> None:
    ours, theirs = LpBatchNorm(3, p=2), nn.BatchNorm1d(3)
    ours(torch.randn(8, 3))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert list(NoisyBatchNorm(3).state_dict()) == list(theirs.state_dict())


def test_first_norm_is_the_mean_size_without_a_factor() -> None:
    x = torch.randn(50_000, 2, dtype=torch.float64)
    y = LpBatchNorm(2, p=1, eps=1e-30, dtype=torch.float64, affine=False)(x)
    torch.testing.assert_close(y.abs().mean(0), torch.ones(2, dtype=torch.float64))
    # sqrt(pi/2) = 1.2533; six standard errors of the deviation of 50,000 values are 2.4 %
    assert abs(float(y.std()) - math.sqrt(math.pi / 2)) < 0.03


def test_norm_of_the_maximum_bounds_the_output() -> None:
    y = LpBatchNorm(4, p=math.inf, eps=1e-30)(5 + torch.randn(16, 4, 3))
    assert bool((y.abs().amax((0, 2)) == 1).all())


def test_values_that_tie_for_the_maximum_share_its_gradient() -> None:
    layer = LpBatchNorm(1, p=math.inf, eps=1e-30, dtype=torch.float64)
    x = torch.tensor([[-1.0], [1.0], [0.0], [0.0]], dtype=torch.float64, requires_grad=True)
    layer(x).backward(torch.tensor([[0.0], [1.0], [0.0], [0.0]], dtype=torch.float64))
    # direct (0, 1, 0, 0), through the maximum (1/2, -1/2, 0, 0), less the mean of both, 1/4
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.25, 0.25, -0.25, -0.25]


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_norm_of_x_itself_contains_the_mean(p: float) -> None:
    x = 100 + torch.randn(64, 3)
    y = LpBatchNorm(3, p=p, centred=False, affine=False)(x)
    assert float(y.abs().max()) < 0.06  # at most 6 of 100
    assert float(y.mean(0).abs().max()) < 1e-4


def test_eps_is_in_the_root_for_the_second_norm_and_added_to_the_others() -> None:
    x = torch.tensor([[-1.0], [1.0]])  # all norms are 1
    for p, largest in ((1, 1 / 4), (2, 1 / 2), (math.inf, 1 / 4)):
        assert float(LpBatchNorm(1, p=p, eps=3.0, affine=False)(x).max()) == largest
