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

from renorm import BatchRenorm1d, BatchRenorm2d, freeze, limits
from renorm.calibration import calibrate, pooling
from renorm.errors import ArgumentError
from renorm.nn import BatchRenorm
from renorm.reference import population

LAYERS = {
    "BatchRenorm1d": lambda: BatchRenorm1d(3),
    "BatchNorm1d": lambda: nn.BatchNorm1d(3),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(3),
    "any rank": lambda: BatchRenorm(3),
}


def sequential(*layers) -> Any:
    return nn.Sequential(*layers).double()


def deep(norm: Any = nn.BatchNorm1d):
    return sequential(nn.Linear(3, 4), norm(4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh(), norm(5))


def statistics(model: Any):
    buffers = model.named_buffers()
    return [b.clone() for name, b in buffers if not name.endswith("num_batches_tracked")]


def assert_same(left, right, rtol=1e-12):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


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
    model, x = sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), torch.randn(50, 3).double()
    y = calibrate(model, x.split(10)).eval()(x)
    torch.testing.assert_close(y.mean(0), torch.zeros_like(y[0]))
    torch.testing.assert_close(y.std(0, correction=0), torch.ones_like(y[0]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("pool", ["population", "paper"])
def test_mask(pool, positional):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = BatchRenorm1d(3)

        def forward(self, x, mask):
            return self.norm(x, mask) if positional else self.norm(input=x, mask=mask)

    x, mask = torch.randn(6, 3, 5).double(), torch.rand(6, 5) < 0.6
    model = Masked().double()
    garbage = x.masked_fill(~mask.unsqueeze(1), torch.nan)
    calibrate(model, [{"x": garbage, "mask": mask}], pool=pool)
    values = x.transpose(0, 1)[:, mask]
    correction = int(pool == "paper")
    torch.testing.assert_close(model.norm.running_mean, values.mean(1))
    torch.testing.assert_close(model.norm.running_var, values.var(1, correction=correction))


def test_group_that_is_all_padding_is_no_batch():
    x = torch.randn(2, 3, 5).double()
    for pool in (pooling.Paper("layer"), pooling.Population("layer")):
        pool.add(x, torch.tensor([[True] * 5, [False] * 5]), 1)
        found = pool.result()
        assert found is not None
        assert_same([found[0]], [x[0].mean(1)])


@pytest.mark.parametrize("pool", ["population", "paper"])
def test_batches_that_are_all_padding_are_no_data(pool):
    layer = BatchRenorm1d(3, single="running")
    batch = {"input": torch.randn(2, 3, 5), "mask": torch.zeros(2, 5, dtype=torch.bool)}
    with pytest.raises(ArgumentError, match="got no data"):
        calibrate(layer, [batch], pool=pool)


def test_paper_pools_groups_of_a_microbatch():
    x = torch.randn(9, 3).double()
    layer = calibrate(BatchRenorm1d(3, microbatch=4).double(), [x[:8]], pool="paper")
    expected = calibrate(nn.BatchNorm1d(3).double(), x[:8].split(4), pool="paper")
    assert_same(statistics(layer), statistics(expected))


def test_shared_layer_pools_its_calls():
    norm = nn.BatchNorm1d(3).double()
    x = torch.randn(8, 3).double()
    calibrate(sequential(norm, norm), [x])
    with torch.no_grad():
        both = torch.cat([x, nn.BatchNorm1d(3).double()(x)])
    torch.testing.assert_close(norm.running_mean, both.mean(0))


def test_images_and_half_precision():
    x = torch.randn(6, 3, 4, 4, dtype=torch.bfloat16)
    layer = calibrate(BatchRenorm2d(3).bfloat16(), x.split(2))
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.bfloat16
    torch.testing.assert_close(layer.running_mean, x.double().mean((0, 2, 3)).bfloat16())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, torch.zeros(len(x))),
        lambda x: [x, torch.zeros(len(x))],
        lambda x: {"input": x},
    ],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_batches_in_each_form(wrap):
    x = torch.randn(8, 3)
    model = nn.BatchNorm1d(3)
    calibrate(model, [wrap(x[:4]), wrap(x[4:])])
    torch.testing.assert_close(model.running_mean, x.mean(0))


def test_forward_calls_the_model_in_any_other_way():
    x = torch.randn(8, 3)
    model = nn.BatchNorm1d(3)
    calibrate(model, ["half", "half"], forward=lambda model, batch: model(x[:4]))
    torch.testing.assert_close(model.running_mean, x[:4].mean(0))


def test_generator_serves_one_pass():
    x = torch.randn(8, 3)
    model = calibrate(nn.BatchNorm1d(3), (part for part in x.split(2)))
    torch.testing.assert_close(model.running_mean, x.mean(0))


@pytest.mark.parametrize("upstream", ["train", "calibrated"])
def test_compiled_model(upstream):
    model = sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    compiled: Any = torch.compile(model, backend="eager")
    compiled(torch.randn(8, 3).double())
    for _ in range(2):
        x = torch.randn(8, 3).double()
        eager = copy.deepcopy(model)
        calibrate(compiled, [x], upstream=upstream)
        calibrate(eager, [x], upstream=upstream)
        assert_same(statistics(model), statistics(eager))


def test_frozen_layer_keeps_its_statistics_and_normalizes_by_them():
    model = sequential(BatchRenorm1d(3), BatchRenorm1d(3))
    freeze(model[0])
    x = torch.randn(8, 3).double() * 5 + 2
    calibrate(model, [x])
    assert_same(statistics(model[0]), (torch.zeros(3).double(), torch.ones(3).double()))
    torch.testing.assert_close(model[1].running_mean, x.mean(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchRenorm1d])
def test_layer_without_statistics_normalizes_by_its_batch(norm):
    model = sequential(norm(3, track_running_stats=False), norm(3))
    calibrate(model, [torch.randn(8, 3).double() + 9])
    torch.testing.assert_close(model[1].running_mean, torch.zeros(3).double())


def test_layer_that_is_no_longer_tracked_is_calibrated():
    layer = nn.BatchNorm1d(3)
    layer.track_running_stats = False
    x = torch.randn(8, 3)
    calibrate(layer, [x])
    torch.testing.assert_close(layer.running_mean, x.mean(0))
    assert layer.track_running_stats is False


def test_uncalled_layers_may_be_kept():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.aux = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.aux(x) if self.training else self.norm(x)

    x = torch.randn(8, 3)
    for upstream in ("train", "calibrated"):
        model = Auxiliary()
        with pytest.raises(ArgumentError, match="got no data: aux"):
            calibrate(model, [x], upstream=upstream)
        assert_same(statistics(model.norm), (torch.zeros(3), torch.ones(3)))
        calibrate(model, [x], upstream=upstream, uncalled="keep")
        torch.testing.assert_close(model.norm.running_mean, x.mean(0))
        assert_same(statistics(model.aux), (torch.zeros(3), torch.ones(3)))


def test_dropout_is_off():
    model = sequential(nn.Dropout(0.9), nn.BatchNorm1d(3)).train()
    x = torch.randn(8, 3).double()
    calibrate(model, [x])
    torch.testing.assert_close(model[1].running_mean, x.mean(0))
