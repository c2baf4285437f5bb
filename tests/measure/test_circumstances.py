"""What is to be known of a model without running it."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import renorm
from renorm import ArgumentError, BatchRenorm1d, limits
from renorm.measure.circumstances import converted, limits_ahead, rank_spread
from renorm.measure.records import MODEL, Converted


def test_limits_after_so_many_more_updates() -> None:
    model = nn.Sequential(
        BatchRenorm1d(3, limits=limits.over(1_000)),
        nn.BatchNorm1d(3),
        BatchRenorm1d(3, limits=limits.fixed(math.inf, 2)),
        BatchRenorm1d(3, track_running_stats=False),
    )
    model.get_submodule("0").get_buffer("num_batches_tracked").fill_(50)
    before = copy.deepcopy(model.state_dict())
    first, second = limits_ahead(model, 100)
    assert (first.layer, first.steps) == ("0", 100)
    assert (first.r_max, first.d_max) == limits.over(1_000)(150)
    assert (second.layer, second.r_max, second.d_max) == ("2", math.inf, 2)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_limits_by_a_function_of_tensors() -> None:
    def own(step: Tensor) -> tuple[Tensor, Tensor]:
        return step.clamp(max=3) + 1.0, step / 2

    (found,) = limits_ahead(BatchRenorm1d(3, limits=own), 4)
    assert (found.layer, found.r_max, found.d_max) == (MODEL, 4, 2)


@pytest.mark.parametrize("steps", [-1, 1.5, True, None])
def test_steps_that_are_none(steps: Any) -> None:
    with pytest.raises(ArgumentError, match="0 or more"):
        limits_ahead(BatchRenorm1d(3), steps)


def test_no_layer_has_limits() -> None:
    assert limits_ahead(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), 10) == ()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))


def test_what_a_conversion_changed() -> None:
    before, after = net(), renorm.convert(net(), include="1")
    assert converted(before, after) == (
        Converted("1", "BatchNorm1d", "BatchRenorm1d", False, True),
    )
    assert converted(after, before) == (
        Converted("1", "BatchRenorm1d", "BatchNorm1d", True, False),
    )
    assert converted(before, copy.deepcopy(before)) == ()


def test_a_layer_that_is_gone() -> None:
    after = net()
    after[1] = nn.Identity()
    del after[3]
    assert converted(renorm.convert(net()), after) == (
        Converted("1", "BatchRenorm1d", "", True, False),
        Converted("3", "BatchRenorm1d", "", True, False),
    )


def test_a_layer_that_sync_batch_norm_took() -> None:
    after = nn.SyncBatchNorm.convert_sync_batchnorm(net())
    found = converted(renorm.convert(net()), after)
    assert [(one.after, one.is_renorm) for one in found] == [("SyncBatchNorm", False)] * 2


def test_a_process_alone_has_no_spread() -> None:
    assert rank_spread(net()) == ()
