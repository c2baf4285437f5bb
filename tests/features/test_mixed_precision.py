"""Autocast and a gradient scaler, with batches and gradients that overflow."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import renorm
from renorm import limits

HALF = [torch.bfloat16, torch.float16]


def net() -> Any:
    settings = {"momentum": 0.1, "limits": limits.fixed(2, 1)}
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        renorm.BatchRenorm2d(8, **settings),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        renorm.BatchRenorm2d(8, **settings),
        nn.Flatten(),
        nn.Linear(8 * 16, 2),
    )


def step(model: nn.Module, scaler: Any, optimizer: Any, x: Tensor, dtype: torch.dtype) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype):
        loss = nn.functional.cross_entropy(model(x).float(), torch.zeros(len(x)).long())
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def finite(model: nn.Module) -> bool:
    return all(bool(t.isfinite().all()) for t in model.state_dict().values())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("accumulates", [False, True])
def test_overflow_leaves_no_trace_and_training_recovers(
    dtype: torch.dtype, accumulates: bool
) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    counts = []
    for i in range(6):
        x = torch.randn(4, 3, 8, 8)
        if i == 2:
            x[0, 0] = 1e38  # overflows in the first layer
        if i == 4:
            scaler.update(float("inf"))  # the gradient overflows, the batch does not
        before = [p.clone() for p in model.parameters()]
        if accumulates:
            with renorm.accumulate(model):
                step(model, scaler, optimizer, x, dtype)
        else:
            step(model, scaler, optimizer, x, dtype)
        moved = any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert moved == (i not in (2, 4))
        assert finite(model)
        counts.append(int(model[1].num_batches_tracked))
        if i == 4:
            scaler.update(2.0**10)
    assert counts == [1, 2, 2, 3, 4, 5]
    assert model[1].running_mean.dtype == torch.float32
    with torch.autocast("cpu", dtype):
        assert bool(model.eval()(torch.randn(4, 3, 8, 8)).isfinite().all())


@pytest.mark.parametrize("dtype", HALF)
def test_statistics_under_autocast_are_those_of_float32(dtype: torch.dtype) -> None:
    layer = renorm.BatchRenorm2d(3, momentum=1.0)
    x = (torch.randn(8, 3, 6, 6) * 5 + 100).to(dtype)
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.dtype == dtype
    true = x.double()
    torch.testing.assert_close(layer.running_mean, true.mean((0, 2, 3)).float())
    var = true.var((0, 2, 3), correction=0).float()
    torch.testing.assert_close(layer.running_var, var, rtol=1e-5, atol=0)
