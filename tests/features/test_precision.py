"""Half precision: autocast, casted modules, gradient scaling, one bad batch."""

import pytest
import torch
from torch import Tensor, nn

from renorm import BatchRenorm1d, BatchRenorm2d, limits

HALF = [torch.bfloat16, torch.float16]
KERNELS = ["aten", "composite"]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast_gives_the_dtype_that_batch_norm_gives(dtype: torch.dtype, kernel: str) -> None:
    x = torch.randn(4, 3, 5, 5)
    for layer in (BatchRenorm2d(5, kernel=kernel), nn.BatchNorm2d(5)):
        net = nn.Sequential(nn.Conv2d(3, 5, 3), layer)
        with torch.autocast("cpu", dtype):
            y = net(x)
            assert y.dtype == dtype
            assert layer(torch.randn(4, 5, 3, 3)).dtype == torch.float32
        y.backward(torch.randn_like(y))
        assert layer.weight.grad is not None
        assert layer.weight.grad.dtype == torch.float32
        assert layer.running_mean.dtype == torch.float32  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_casted_module_keeps_the_dtype(dtype: torch.dtype, kernel: str) -> None:
    layer = BatchRenorm2d(3, kernel=kernel).to(dtype)
    y = layer(torch.randn(4, 3, 5, 5, dtype=dtype))
    assert y.dtype == dtype
    assert {t.dtype for t in layer.state_dict().values()} == {dtype, torch.int64}


def test_float16_statistics_do_not_overflow() -> None:
    """NaN or inf kept for ever: squares of N(2000, 300) exceed float16, not float32."""
    x = (2000 + 300 * torch.randn(64, 4)).half()
    layer = BatchRenorm1d(4, momentum=1.0)
    layer(x)
    assert layer.running_var is not None
    torch.testing.assert_close(layer.running_var, x.float().var(0, correction=0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_batch_is_seen_by_the_scaler_and_forgotten_by_the_statistics(bad: float) -> None:
    layer = BatchRenorm1d(3, limits=limits.fixed(2, 2))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # type: ignore[attr-defined]

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        y = layer(x)
        scaler.scale((y * torch.randn_like(y)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    step(torch.randn(8, 3))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    step(torch.randn(8, 3).index_fill(0, torch.tensor([2]), bad))
    assert scaler.get_scale() == 2.0  # the overflow was seen, and the step skipped
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    step(torch.randn(8, 3))
    assert int(layer.num_batches_tracked) == 2  # type: ignore[arg-type]
    assert all(v.isfinite().all() for v in layer.state_dict().values())


def test_overflowing_float32_variance_is_a_bad_batch_too() -> None:
    layer = BatchRenorm1d(2)
    x = torch.full((4, 2), 1e30) * torch.tensor([1.0, -1.0, 1.0, -1.0]).unsqueeze(1)
    layer(x)
    assert int(layer.num_batches_tracked) == 0  # type: ignore[arg-type]
    assert torch.equal(layer.running_var, torch.ones(2))  # type: ignore[arg-type]
