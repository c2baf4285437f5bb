"""Population statistics: the values."""

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from renorm import BatchRenorm1d, limits
from renorm.calibration import calibrate, pooling
from renorm.nn import BatchRenorm
from renorm.reference import population
from support.networks import assert_same, sequential, statistics

LAYERS = {
    "BatchRenorm1d": lambda: BatchRenorm1d(3),
    "BatchNorm1d": lambda: nn.BatchNorm1d(3),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(3),
    "any rank": lambda: BatchRenorm(3),
}


def deep(norm: Any = nn.BatchNorm1d):
    return sequential(
        nn.Linear(3, 4), norm(4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh(), norm(5)
    ).double()


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_population_is_mean_and_biased_variance_of_all_values(make):
    layer = make().double()
    x = torch.randn(12, 3, dtype=torch.double) * 3 + 5
    calibrate(layer, x.split([2, 3, 7]))
    torch.testing.assert_close(layer.running_mean, x.mean(0))
    torch.testing.assert_close(layer.running_var, x.var(0, correction=0))


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_paper_is_algorithm_2_of_the_reference(make):
    layer = make().double()
    batches = list((torch.randn(12, 3, dtype=torch.double) * 3 + 5).split([2, 3, 7]))
    mean, var = population([b.numpy() for b in batches])
    calibrate(layer, batches, pool="paper")
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.numpy(), var, rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(cuts=st.sets(st.integers(1, 29)))
def test_any_split_gives_the_same_population(cuts):
    x = torch.randn(30, 3, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    bounds = [0, *sorted(cuts), 30]
    pool = pooling.Population("layer")
    for start, end in pairwise(bounds):
        pool.add(x[start:end], None, None)
    found = pool.result()
    assert found is not None
    assert_same(found, (x.mean((0, 2)), x.var((0, 2), correction=0)))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchRenorm1d])
def test_any_split_gives_the_same_statistics_of_a_deep_model(norm):
    x = torch.randn(24, 3, dtype=torch.double)
    model = deep(norm)
    results = []
    for sizes in ([24], [1] * 24, [2, 3, 19]):
        other = copy.deepcopy(model)
        calibrate(other, x.split(sizes), upstream="calibrated")
        results.append(statistics(other))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_large_batches_are_taken_in_parts(monkeypatch):
    monkeypatch.setattr(pooling, "_CHUNK", 10)
    x = torch.randn(7, 3, 2, 2, dtype=torch.double)
    mask = torch.rand(7, 2, 2) < 0.5
    for m in (None, mask):
        n, mean, m2 = pooling.moments(x, m)
        values = x.transpose(0, 1)[:, mask if m is not None else torch.ones_like(mask)]
        assert n == values.shape[1]
        assert_same((mean, m2), (values.mean(1), values.var(1, correction=0) * n))


def test_offset_far_above_the_spread():
    x = torch.randn(64, 3) + 1e4
    layer = calibrate(nn.BatchNorm1d(3), x.split(8))
    torch.testing.assert_close(layer.running_var, x.double().var(0, correction=0).float())


def test_upstream_train_sees_what_batch_statistics_produce():
    model = deep()
    first, second = torch.randn(8, 3, dtype=torch.double), torch.randn(5, 3, dtype=torch.double)
    calibrate(model, [first, second])
    with torch.no_grad():
        inner = [copy.deepcopy(model[:5]).train()(x) for x in (first, second)]
    torch.testing.assert_close(model[5].running_mean, torch.cat(inner).mean(0))
    torch.testing.assert_close(model[5].running_var, torch.cat(inner).var(0, correction=0))


def test_upstream_train_keeps_the_present_limits():
    model = deep(lambda c: BatchRenorm1d(c, limits=limits.fixed(float("inf"), float("inf"))))
    x = torch.randn(8, 3, dtype=torch.double)
    with torch.no_grad():
        by_old_statistics = model.eval()[:5](x)
    calibrate(model, [x])
    torch.testing.assert_close(model[5].running_mean, by_old_statistics.mean(0))


@pytest.mark.parametrize("pool", ["population", "paper"])
def test_upstream_calibrated_sees_what_calibrated_layers_produce(pool):
    model, x = deep(), torch.randn(8, 3, dtype=torch.double)
    calibrate(model, [x], upstream="calibrated", pool=pool)
    with torch.no_grad():
        inner = model.eval()[:5](x)
    torch.testing.assert_close(model[5].running_mean, inner.mean(0))
    torch.testing.assert_close(model[5].running_var, inner.var(0, correction=int(pool == "paper")))


def test_upstream_calibrated_goes_in_order_of_execution():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.last(self.first(x) ** 2)

    model = Reversed()
    x = torch.randn(16, 3) * 4
    calibrate(model, [x], upstream="calibrated")
    inner = model.eval().first(x) ** 2
    torch.testing.assert_close(model.last.running_mean, inner.detach().mean(0))


def test_calibrated_model_normalizes_its_population():
    model, x = sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double(), torch.randn(50, 3).double()
    y = calibrate(model, x.split(10)).eval()(x)
    torch.testing.assert_close(y.mean(0), torch.zeros_like(y[0]))
    torch.testing.assert_close(y.std(0, correction=0), torch.ones_like(y[0]), rtol=0, atol=1e-3)


def test_paper_pools_groups_of_a_microbatch():
    x = torch.randn(9, 3).double()
    layer = calibrate(BatchRenorm1d(3, microbatch=4).double(), [x[:8]], pool="paper")
    expected = calibrate(nn.BatchNorm1d(3).double(), x[:8].split(4), pool="paper")
    assert_same(statistics(layer), statistics(expected))


def test_shared_layer_pools_its_calls():
    norm = nn.BatchNorm1d(3).double()
    x = torch.randn(8, 3).double()
    calibrate(sequential(norm, norm).double(), [x])
    with torch.no_grad():
        both = torch.cat([x, nn.BatchNorm1d(3).double()(x)])
    torch.testing.assert_close(norm.running_mean, both.mean(0))
