"""The seven defects of the most used implementations, each impossible here.

The contract battery plants the same defects in a layer and must find them; here each one is shown
in the situation where its users met it.
"""

import pytest
import torch
from torch import nn

from renorm import BatchRenorm1d, BatchRenorm2d, limits
from renorm.nn import BatchRenorm

KERNELS = pytest.mark.parametrize("kernel", ["aten", "composite"])


@KERNELS
def test_correction_does_not_grow_after_warm_up(kernel: str) -> None:
    """TorchRL: on stationary data the gap of training to inference grows for ever."""
    layer = BatchRenorm1d(8, limits=limits.over(100), kernel=kernel)
    gaps = {}
    for step in range(1, 1001):
        x = torch.randn(32, 8)
        with torch.no_grad():
            gap = (layer(x) - layer.eval()(x)).square().mean().sqrt()
        layer.train()
        gaps[step] = float(gap)
    # limits (3, 5) clip next to nothing here, so that training is inference but for the update
    assert max(gaps[step] for step in range(900, 1001)) < 0.05 < gaps[1]


@KERNELS
def test_variance_is_over_every_value_of_a_channel(kernel: str) -> None:
    """TorchRL: two images of unit variance give a running variance of 2, one image gives inf."""
    for n in (1, 2):
        layer = BatchRenorm2d(3, momentum=1.0, kernel=kernel)
        x = torch.randn(n, 3, 64, 64)
        layer(x)
        assert layer.running_var is not None
        torch.testing.assert_close(layer.running_var, x.var((0, 2, 3), correction=0))


@KERNELS
def test_eps_is_not_lost_where_the_variance_is_small(kernel: str) -> None:
    """sb3-contrib, sbx: with std 0.01 and eps 1e-3 the output is off by a third."""
    x = (0.01 * torch.randn(256, 4)).double()
    layer = BatchRenorm1d(4, eps=1e-3, limits=limits.fixed(3, 5), kernel=kernel).double()
    with torch.no_grad():
        assert layer.running_var is not None
        assert layer.running_mean is not None
        layer.running_var.fill_(4e-4)
        layer.running_mean.fill_(-0.02)
    y = layer(x)
    sigma = (4e-4 + 1e-3) ** 0.5  # nothing is clipped: training is inference
    torch.testing.assert_close(y, (x + 0.02) / sigma)


@KERNELS
def test_running_statistics_are_in_the_state_dict(kernel: str) -> None:
    """Avalanche: a checkpoint holds weight and bias alone."""
    layer = BatchRenorm2d(3, kernel=kernel)
    layer(torch.randn(4, 3, 5, 5) + 2)
    assert set(layer.state_dict()) == set(nn.BatchNorm2d(3).state_dict())
    other = BatchRenorm2d(3)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(other.eval()(x), layer.eval()(x))
    assert int(other.num_batches_tracked) == 1  # type: ignore[arg-type]


@KERNELS
def test_nan_or_inf_statistics_are_not_kept(kernel: str) -> None:
    """TorchRL, sb3-contrib: float16 input N(2000, 300), or one NaN, poisons inference for ever."""
    layer = BatchRenorm1d(4, kernel=kernel)
    layer((2000 + 300 * torch.randn(64, 4)).half())
    assert int(layer.num_batches_tracked) == 1  # type: ignore[arg-type]
    for bad in ("nan", "inf"):
        layer(torch.full((8, 4), float(bad)))
    assert all(value.isfinite().all() for value in layer.state_dict().values())
    assert layer.eval()(torch.randn(3, 4)).isfinite().all()


@KERNELS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_output_has_the_dtype_of_the_input(kernel: str, dtype: torch.dtype) -> None:
    """ludvb, sb3-contrib, TorchRL, Avalanche: half input comes back as float32."""
    layer = BatchRenorm1d(4, kernel=kernel, dtype=dtype if dtype == torch.float64 else None)
    x = torch.randn(8, 4, dtype=dtype)
    assert layer(x).dtype == dtype
    assert layer.to(dtype).eval()(x).dtype == dtype


@KERNELS
def test_r_and_d_carry_no_gradient(kernel: str) -> None:
    """Lasagne: unclipped, a gradient through r and d would be that of (x - mu) / sigma alone."""
    inf = float("inf")
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    layer = BatchRenorm(3, limits=limits.fixed(inf, inf), kernel=kernel).double()
    (dx,) = torch.autograd.grad(layer(x), x, torch.randn(6, 3, dtype=torch.float64))
    # batch norm's projection: dx is orthogonal to 1 and (but for eps) to x in every channel
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(dx.sum(0), zero, atol=1e-12, rtol=0)
    centred = (x - x.mean(0)).detach()
    torch.testing.assert_close((dx * centred).sum(0), zero, atol=1e-4, rtol=0)
    assert dx.abs().max() > 0.1
