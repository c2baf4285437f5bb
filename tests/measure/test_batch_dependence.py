"""The permutation test: by hand, under independence, and under clustered batches."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from surveyed import rows
from torch import nn

from renorm import BatchRenorm1d
from renorm.errors import ArgumentError
from renorm.measure import survey
from renorm.measure.batch_dependence import dependence
from renorm.measure.records import BatchDependence, Note


def of_model(model: nn.Module, batches: list, **options: Any) -> tuple[BatchDependence, ...]:
    return survey(model, batches, quantities="batch_dependence", **options).of(BatchDependence)


def clustered(count: int, size: int = 8) -> list[torch.Tensor]:
    """Batches of examples that share an offset."""
    return [x + torch.randn(1, 3, dtype=torch.float64) for x in rows(count, size)]


def test_ratio_and_correlation_by_hand() -> None:
    # means 0 and 10 of batches of 2; about the mean 5 the squares are 36, 16, 16 and 36
    batches = [np.array([[-1.0], [1.0]]), np.array([[9.0], [11.0]])]
    found = dependence(batches, 2000, 0)
    assert found is not None
    assert found.ratio == pytest.approx((2 * 25 + 2 * 25) / (104 / 3))
    # mean squares between and within are 100 and 2
    assert found.correlation == pytest.approx((100 - 2) / (100 + 2))
    # of the 6 assignments, 2 are as far apart, and none is closer than another by more
    assert found.p_more == pytest.approx(1 / 3, abs=0.04)
    assert found.p_less == 1


def test_against_all_assignments() -> None:
    generator = np.random.default_rng(3)
    batches = [generator.normal(size=(n, 2)) + b for b, n in enumerate((2, 3, 2))]
    found = dependence(batches, 20_000, 0)
    assert found is not None
    z = np.concatenate(batches)
    z = (z - z.mean(0)) / z.std(0, ddof=1)

    def ratio(order: Any) -> float:
        parts = np.split(z[list(order)], [2, 5])
        return sum(len(p) * float((p.mean(0) ** 2).sum()) for p in parts) / 2 / 2

    ratios = np.array([ratio(order) for order in itertools.permutations(range(7))])
    own = ratio(range(7))
    assert found.ratio == pytest.approx(own)
    assert ratios.mean() == pytest.approx(1)
    # the standard error of a fraction of 20,000 is 0.0035 at most
    assert found.p_more == pytest.approx((ratios >= own - 1e-9).mean(), abs=0.015)
    assert found.p_less == pytest.approx((ratios <= own + 1e-9).mean(), abs=0.015)


def test_p_values_are_uniform_under_independence() -> None:
    generator = np.random.default_rng(0)
    found = [
        dependence([generator.normal(size=(4, 3)) for _ in range(6)], 99, seed)
        for seed in range(400)
    ]
    for p in ([f.p_more for f in found if f], [f.p_less for f in found if f]):
        counts = np.histogram(np.array(p, float) - 1e-9, bins=10, range=(0, 1))[0]
        # chi-square with 9 degrees of freedom: 27.9 is exceeded once in 1000
        assert ((counts - 40) ** 2 / 40).sum() < 27.9
    ratios = np.array([f.ratio for f in found if f], float)
    assert ratios.mean() == pytest.approx(1, abs=4 * ratios.std() / np.sqrt(len(ratios)))


def test_independent_batches_through_a_model() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8))
    p = []
    for seed in range(20):
        found = of_model(model.double(), rows(6, 4, seed=seed), depth="quick", seed=seed)
        assert [one.layer for one in found] == ["1", "3"]
        p += [one.p_more for one in found]
    # a test on train-mode values would find less spread than chance behind the first norm
    assert 0.3 < np.mean(np.array(p, float)) < 0.7


def test_clustered_batches_are_found() -> None:
    found = of_model(nn.BatchNorm1d(3).double(), clustered(10))[0]
    assert found.p_more == pytest.approx(1 / 500)
    assert found.p_less == 1
    assert found.ratio is not None
    assert found.ratio > 2
    assert found.correlation is not None
    assert 0.1 < found.correlation < 0.5  # offsets have variance 1, values in a batch 4


def test_power_at_small_batches() -> None:
    detected = 0
    for seed in range(20):
        torch.manual_seed(seed)
        batches = [x + torch.randn(1, 3, dtype=torch.float64) * 2 for x in rows(16, 4, seed=seed)]
        found = of_model(nn.BatchNorm1d(3).double(), batches, seed=seed)[0]
        detected += found.p_more is not None and found.p_more < 0.01
    assert detected >= 19


def test_power_at_weak_dependence_in_many_batches() -> None:
    # 0.08 of a variance of 4 is shared: a ratio of 1.6, as of classes that a net hardly tells
    detected = 0
    for seed in range(10):
        torch.manual_seed(seed)
        shared = [0.28 * torch.randn(1, 3, dtype=torch.float64) for _ in range(64)]
        batches = [x + y for x, y in zip(rows(64, 32, seed=seed), shared, strict=True)]
        found = of_model(nn.BatchNorm1d(3).double(), batches, seed=seed)[0]
        detected += found.p_more is not None and found.p_more < 0.01
    assert detected >= 9  # of 16 batches about half


def test_stratified_batches_spread_less_than_chance() -> None:
    # each batch has one example of either kind
    x = torch.randn(24, 3, dtype=torch.float64)
    kinds = torch.tensor([3.0, -3.0], dtype=torch.float64)[:, None]
    found = of_model(nn.BatchNorm1d(3).double(), [x[2 * i : 2 * i + 2] + kinds for i in range(12)])
    assert found[0].p_less is not None
    assert found[0].p_less < 0.01
    assert found[0].correlation is not None
    assert found[0].correlation < -0.5


def test_what_is_kept_is_bounded() -> None:
    model = nn.BatchNorm1d(200).double()
    few, many = (of_model(model, rows(n, 100, 200))[0] for n in (64, 100))
    assert (few.batches, few.examples, few.channels) == (64, 64 * 32, 16)
    assert (many.batches, many.examples, many.channels) == (64, 64 * 32, 16)


def test_a_shared_layer_is_not_taken_for_clustered() -> None:
    norm = BatchRenorm1d(3)
    model = nn.Sequential(norm, nn.Linear(3, 3), norm).double()
    p = [of_model(model, rows(8, seed=s), seed=s)[0].p_more for s in range(10)]
    assert np.mean(np.array(p, float)) > 0.2


@pytest.mark.parametrize("batches", [rows(1), rows(5, 1)], ids=["one batch", "one example"])
def test_too_few(batches: list) -> None:
    model = nn.BatchNorm1d(3).double()
    with pytest.raises(ArgumentError, match=r"batch_dependence was asked for.*needs two batches"):
        of_model(model, batches)
    (note,) = (n for n in survey(model, batches).of(Note) if n.quantity == "batch_dependence")
    assert note.layer == "(model)"


def test_constant_channels_say_nothing() -> None:
    found = of_model(nn.BatchNorm1d(3).double(), [torch.ones(4, 3).double()] * 4)[0]
    assert (found.channels, found.ratio, found.p_more) == (0, None, None)
