"""A monitor of a model that several processes train: each observes what its own part did."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from renorm import BatchRenorm1d, limits
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
