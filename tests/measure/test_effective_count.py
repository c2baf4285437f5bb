"""Effective numbers of values, against sums over all pairs of positions."""

from typing import Any

import numpy as np
import pytest
import torch
from surveyed import as_array, images, rows
from torch import Tensor, nn

from renorm import BatchRenorm1d, BatchRenorm2d
from renorm.measure import survey
from renorm.measure.records import EffectiveCount


def count(model: Any, batches: list, **options: Any) -> EffectiveCount:
    found = survey(model, batches, quantities="effective_count", **options)
    return found.of(EffectiveCount)[0]


def smooth(x: Tensor) -> Tensor:
    """Images whose neighbouring pixels are alike."""
    return nn.functional.avg_pool2d(x, 3, 1, 1)


def test_against_all_pairs_of_positions() -> None:
    batches = [smooth(x) for x in images(4)]
    found = count(nn.BatchNorm2d(3).double(), batches)
    x = np.concatenate(as_array(batches)).reshape(24, 3, 64)
    expected = []
    for c in range(3):
        own = x[:, c]
        mu = own.mean()
        sigma2 = ((own - mu) ** 2).mean()
        correlations = sum(
            ((own[:, s] - mu) * (own[:, t] - mu)).mean() / sigma2
            for s in range(64)
            for t in range(64)
        )
        expected.append(64**2 / correlations)
    assert found.effective == pytest.approx(np.median(expected), rel=1e-6)
    assert found.effective_05 == pytest.approx(np.percentile(expected, 5), rel=1e-6)
    assert (found.positions, found.examples) == (64, 6)
    means = x.reshape(4, 6, 3, 64).mean((1, 3))
    ratio = x.transpose(1, 0, 2).reshape(3, -1).var(1) / means.var(0, ddof=1)
    assert found.observed == pytest.approx(np.median(ratio), rel=1e-6)


def test_smooth_images_are_worth_less() -> None:
    layer = nn.BatchNorm2d(3).double()
    rough = count(layer, images(40))
    fine = count(layer, [smooth(x) for x in images(40)])
    assert rough.effective is not None
    assert fine.effective is not None
    # 240 examples: a ratio of variances to about 9 %, medians of 3 channels a little better
    assert rough.effective == pytest.approx(64, rel=0.2)
    # interior pixels are means of 9, so about a ninth
    assert 4 < fine.effective < 16


def test_frames_of_a_video_are_worth_one() -> None:
    # each batch is one example six times over, with little noise
    batches = [x[:1].expand(6, 3, 8, 8) + 0.01 * torch.randn(6, 3, 8, 8) for x in images(30)]
    batches = [x.double() for x in batches]
    found = count(nn.BatchNorm2d(3).double(), batches)
    assert found.observed is not None
    assert found.observed < 0.4 * 6 * 64


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), BatchRenorm1d(3)], ids=["torch", "ours"])
def test_one_value_a_channel(layer: Any) -> None:
    found = count(layer.double(), rows(4, 1))
    assert (found.least, found.most, found.single) == (1, 1, 1.0)
    assert (found.positions, found.effective, found.examples) == (1, 1, 1)


def test_groups_and_a_smaller_last_batch() -> None:
    found = count(BatchRenorm2d(3, microbatch=2).double(), [*images(2), *images(1, 1)])
    assert (found.least, found.most, found.single) == (64, 128, 0.0)
    found = count(nn.BatchNorm1d(3).double(), [*rows(2), *rows(2, 1)])
    assert (found.least, found.most, found.single) == (1, 8, 0.5)


def test_masked_positions_do_not_count() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = BatchRenorm1d(3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.norm(x, mask)

    x = torch.randn(6, 3, 5).double()
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[:4, :3] = True
    garbage = x.masked_fill(~mask.unsqueeze(1), torch.nan)
    found = count(Masked().double(), [{"x": garbage, "mask": mask}])
    whole = count(BatchRenorm1d(3).double(), [x[:4, :, :3]])
    assert found.effective == pytest.approx(whole.effective, rel=1e-12)
    assert found.effective_05 == pytest.approx(whole.effective_05, rel=1e-12)
    assert (found.least, found.positions, found.examples) == (12, 3, 4)


def test_large_offsets_in_float32() -> None:
    batches = images(4)
    expected = count(nn.BatchNorm2d(3).double(), batches).effective
    found = count(nn.BatchNorm2d(3), [(x + 1e3).float() for x in batches]).effective
    assert found == pytest.approx(expected, rel=1e-3)


def test_constant_channels_have_none() -> None:
    found = count(nn.BatchNorm2d(3).double(), [torch.ones(4, 3, 2, 2).double()] * 3)
    assert (found.effective, found.observed) == (None, None)
