"""Which layers are calibrated, by which of the values they are given."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from renorm import BatchRenorm1d, BatchRenorm2d, freeze
from renorm.calibration import calibrate, pooling
from renorm.errors import ArgumentError
from support.networks import assert_same, sequential, statistics


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
    model = sequential(
        nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)
    ).double()
    compiled: Any = torch.compile(model, backend="eager")
    compiled(torch.randn(8, 3).double())
    for _ in range(2):
        x = torch.randn(8, 3).double()
        eager = copy.deepcopy(model)
        calibrate(compiled, [x], upstream=upstream)
        calibrate(eager, [x], upstream=upstream)
        assert_same(statistics(model), statistics(eager))


def test_frozen_layer_keeps_its_statistics_and_normalizes_by_them():
    model = sequential(BatchRenorm1d(3), BatchRenorm1d(3)).double()
    freeze(model[0])
    x = torch.randn(8, 3).double() * 5 + 2
    calibrate(model, [x])
    assert_same(statistics(model[0]), (torch.zeros(3).double(), torch.ones(3).double()))
    torch.testing.assert_close(model[1].running_mean, x.mean(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, BatchRenorm1d])
def test_layer_without_statistics_normalizes_by_its_batch(norm):
    model = sequential(norm(3, track_running_stats=False), norm(3)).double()
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
    model = sequential(nn.Dropout(0.9), nn.BatchNorm1d(3)).double().train()
    x = torch.randn(8, 3).double()
    calibrate(model, [x])
    torch.testing.assert_close(model[1].running_mean, x.mean(0))
