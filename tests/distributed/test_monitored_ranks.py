"""A monitor of a model that several processes train: each observes what its own part did."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from renorm import BatchRenorm1d, limits, reference
from renorm.kernels import exchange
from renorm.measure import Monitor
from support.ranks import Ranks


def step(rank: int, group: Any, monitored: list[int]) -> Any:
    model = nn.Sequential(nn.Linear(3, 4), BatchRenorm1d(4, limits=limits.fixed(1.3, 0.4)))
    model: Any = DistributedDataParallel(model, process_group=group)
    torch.manual_seed(rank)
    x = torch.randn(6, 3) * 2
    before = [b.clone() for b in model.buffers()]
    seen = []
    if rank in monitored:
        with Monitor(model, every=1) as monitor:
            y = model(x)
            y.backward(torch.ones_like(y) * x[:, :1])
            monitor.step()
        seen = monitor.observations
    else:
        y = model(x)
        y.backward(torch.ones_like(y) * x[:, :1])
    z = model.module[0](x).detach()
    gradients = [p.grad.clone() for p in model.parameters()]
    return seen, z, before, gradients


def test_one_rank_may_observe_alone(ranks: Ranks) -> None:
    (seen, z, (mean, var, _), _), (nothing, *_) = ranks.run(step, [0])
    (found,) = seen
    assert nothing == []
    assert found.layer == "module.1"
    r = ((z.var(0, correction=0) + 1e-5).sqrt() / (var + 1e-5).sqrt()).clip(1 / 1.3, 1.3)
    d = ((z.mean(0) - mean) / (var + 1e-5).sqrt()).clip(-0.4, 0.4)
    np.testing.assert_allclose(found.r[0], r, rtol=1e-5)
    np.testing.assert_allclose(found.d[0], d, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_without_a_monitor(ranks: Ranks) -> None:
    plain, observed = ranks.run(step, []), ranks.run(step, [0, 1])
    for one, other in zip(plain, observed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[3], other[3], strict=True))


def joint_step(rank: int, group: Any, monitored: list[int], masked: bool) -> Any:
    options: Any = {"limits": limits.fixed(1.3, 0.4), "sync": "batch", "process_group": group}
    layer: Any = BatchRenorm1d(3, **options).double()
    torch.manual_seed(rank)
    x = torch.randn(4 + 2 * rank, 3, 5, dtype=torch.float64) * (1 + rank) + 0.3
    mask = torch.rand(len(x), 5) < 0.6 if masked else None
    x.requires_grad_()
    before = [b.clone() for b in layer.buffers()]
    with nullcontext() if rank not in monitored else Monitor(layer, every=1) as monitor:
        y = layer(x, mask)
        y.backward(torch.randn_like(y))
        if monitor is not None:
            monitor.step()
    assert exchange.observers == []
    hooks = len(layer._forward_hooks) + len(layer._forward_pre_hooks)
    rows = x.detach().transpose(1, 2)
    rows = rows.flatten(0, 1) if mask is None else rows[mask]
    return [] if monitor is None else monitor.observations, rows, before, hooks, y.detach()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("monitored", [[0], [0, 1]], ids=str)
def test_of_a_joint_batch_each_sees_the_whole(
    ranks: Ranks, monitored: list[int], masked: bool
) -> None:
    found = ranks.run(joint_step, monitored, masked)
    rows = torch.cat([one[1] for one in found]).numpy()
    _, _, (mean, var, _), _, _ = found[0]
    mu, sigma = mean.numpy(), np.sqrt(var.numpy() + 1e-5)
    one, zero = np.ones(3), np.zeros(3)
    expected = reference.batch_renorm(
        rows, mu, sigma, one, zero, r_max=1.3, d_max=0.4, alpha=0.0, eps=1e-5
    )
    gap = np.sqrt(((expected.y - (rows - mu) / sigma) ** 2).mean())
    for rank, (observations, _, _, hooks, _) in enumerate(found):
        assert hooks == 0
        assert len(observations) == (rank in monitored)
        for seen in observations:
            np.testing.assert_allclose(seen.r, expected.r[None], rtol=1e-12)
            np.testing.assert_allclose(seen.d, expected.d[None], rtol=1e-12, atol=1e-13)
            assert seen.gap == pytest.approx(gap, rel=1e-10)
    plain = ranks.run(joint_step, [], masked)
    for seen, unseen in zip(found, plain, strict=True):
        assert torch.equal(seen[4], unseen[4])
