"""Statistics of batches against the population, by hand and by loops in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from surveyed import FrozenBatchNorm2d, as_array, images, mixed, rows
from torch import nn

from renorm import BatchRenorm1d, BatchRenorm2d, calibrate, freeze
from renorm.measure import survey
from renorm.measure.records import BatchNoise


def noise(model: nn.Module, batches: list, **options: Any) -> BatchNoise:
    (found,) = survey(model, batches, quantities="batch_noise", **options).of(BatchNoise)
    return found


def test_two_batches_by_hand() -> None:
    # mu = 2, var = 5; batches have means 0 and 4, and variance 1
    batches = [torch.tensor([[-1.0], [1.0]]), torch.tensor([[3.0], [5.0]])]
    found = noise(nn.BatchNorm1d(1, eps=1e-12), batches)
    assert found.groups == found.kept == 2
    assert found.d_rms == pytest.approx(2 / math.sqrt(5), rel=1e-6)
    assert found.log_r_rms == pytest.approx(math.log(math.sqrt(5)), rel=1e-6)
    assert found.beyond_r == ((1.1, 1.0), (1.5, 1.0), (2.0, 1.0), (3.0, 0.0), (5.0, 0.0))
    assert found.beyond_d == ((0.1, 1.0), (0.5, 1.0), (1.0, 0.0), (2.0, 0.0), (5.0, 0.0))


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_against_loops(size: int | None, eps: float) -> None:
    batches = images(5)
    found = noise(BatchRenorm2d(3, eps=eps, microbatch=size).double(), batches)
    x = as_array(batches)
    log_r, d = [], []
    for c in range(3):
        values = [v for batch in x for one in batch for row in one[c] for v in row]
        mu = sum(values) / len(values)
        sigma = math.sqrt(sum((v - mu) ** 2 for v in values) / len(values) + eps)
        for batch in x:
            for start in range(0, 6, size or 6):
                own = batch[start : start + (size or 6), c].ravel().tolist()
                mean = sum(own) / len(own)
                var = sum((v - mean) ** 2 for v in own) / len(own)
                d.append((mean - mu) / sigma)
                log_r.append(math.log(math.sqrt(var + eps) / sigma))
    assert found.groups == len(d) // 3
    assert found.d == pytest.approx(np.percentile(d, [5, 25, 50, 75, 95]), rel=1e-9)
    assert found.log_r == pytest.approx(np.percentile(log_r, [5, 25, 50, 75, 95]), rel=1e-9)
    assert found.d_rms == pytest.approx(math.sqrt(sum(v * v for v in d) / len(d)), rel=1e-9)
    assert found.beyond_d is not None
    for limit, fraction in found.beyond_d:
        assert fraction == sum(abs(v) > limit for v in d) / len(d)


def test_the_population_is_that_of_calibrate() -> None:
    model, batches = mixed().train(), images(4)
    found = survey(model, batches, quantities="batch_noise").of(BatchNoise)
    calibrate(model, batches, upstream="train")
    seen: dict[str, list[float]] = {}

    def look(name: str) -> Any:
        def hook(layer: Any, args: tuple) -> None:
            x = args[0].detach().transpose(0, 1).flatten(1)
            d = (x.mean(1) - layer.running_mean) / (layer.running_var + layer.eps).sqrt()
            seen.setdefault(name, []).extend(d.tolist())

        return hook

    # before the first layer that corrects, the values do not depend on the statistics
    model[1].register_forward_pre_hook(look("1"))
    model.eval()
    for batch in batches:
        model(batch)
    assert [one.layer for one in found] == ["1", "5", "6", "9", "10"]
    assert found[0].d == pytest.approx(np.percentile(seen["1"], [5, 25, 50, 75, 95]), rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm2d(3),
        lambda: nn.SyncBatchNorm(3),
        lambda: nn.BatchNorm2d(3, track_running_stats=False),
        lambda: FrozenBatchNorm2d(3),
        lambda: BatchRenorm2d(3),
        lambda: freeze(BatchRenorm2d(3)),
    ],
    ids=["torch", "sync", "untracked", "FrozenBatchNorm", "renorm", "frozen"],
)
def test_the_noise_is_that_of_the_input_for_every_kind(make: Any) -> None:
    batches = images(4)
    expected = noise(nn.BatchNorm2d(3).double(), batches)
    assert noise(make().double(), batches) == expected


def test_normal_values_have_the_noise_of_theory() -> None:
    # 400 groups of 16 values in 50 channels: d has variance 1 / 16, to about 1 %
    batches = [torch.randn(16, 50, dtype=torch.float64) for _ in range(400)]
    found = noise(nn.BatchNorm1d(50).double(), batches, depth="deep")
    assert found.groups == 400
    assert found.kept == 256
    assert found.d_rms == pytest.approx(1 / 4, rel=0.03)


def test_single_values_are_no_statistics() -> None:
    batches = [*rows(2), *rows(3, 1)]
    for layer in (nn.BatchNorm1d(3).double(), BatchRenorm1d(3).double()):
        found = noise(layer, batches)
        assert found.groups == 5
        assert found.kept == 2


def test_channels_that_are_not_finite_are_left_out() -> None:
    batches = rows(3)
    batches[1][2, 0] = torch.nan
    batches[2][0, 1] = torch.inf
    found = noise(nn.BatchNorm1d(3).double(), batches)
    assert found.channels == 1
    assert noise(nn.BatchNorm1d(3).double(), [batches[0] * torch.nan]).d_rms is None


def test_what_is_kept_does_not_grow() -> None:
    found = noise(nn.BatchNorm1d(3).double(), rows(100, 2), depth="quick")
    assert (found.groups, found.kept) == (100, 16)
    assert found == noise(nn.BatchNorm1d(3).double(), rows(100, 2), depth="quick")
    assert found != noise(nn.BatchNorm1d(3).double(), rows(100, 2), depth="quick", seed=1)
