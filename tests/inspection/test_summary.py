"""The table of layers."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenormAct1d,
    LazyBatchRenorm2d,
    freeze,
    fuse,
    limits,
)
from renorm.inspection import LayerSummary, summary


def row(layer) -> LayerSummary:
    return summary(layer).rows[0]


def test_batch_renorm():
    layer = BatchRenorm1d(4, eps=1e-3, limits=limits.over(100), microbatch=2)
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.fill_(40)
    assert row(nn.Sequential(nn.Linear(4, 4), layer)) == LayerSummary(
        name="1",
        type="BatchRenorm1d",
        channels=4,
        step=40,
        r_max=3.0,
        d_max=5.0,
        limits="r_max 1 -> 3 over steps 5 to 40, d_max 0 -> 5 over steps 5 to 25",
        momentum=0.01,
        eps=1e-3,
        microbatch=2,
        frozen=False,
        statistics="updated",
    )


def test_batch_norm():
    layer = nn.SyncBatchNorm(4)
    assert row(layer) == LayerSummary(
        "",
        "SyncBatchNorm",
        4,
        0,
        1.0,
        0.0,
        "batch norm",
        0.1,
        1e-5,
        None,
        False,
        "updated",
        sync="batch",
    )


def test_only_the_batch_norm_family_is_listed():
    model = nn.Sequential(nn.InstanceNorm1d(4), nn.GroupNorm(2, 4), BatchRenorm1d(4))
    assert [r.name for r in summary(model).rows] == ["2"]


def test_shared_layer_is_listed_once():
    layer = nn.BatchNorm1d(4)
    assert [r.name for r in summary(nn.Sequential(layer, layer)).rows] == ["0"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: freeze(BatchRenorm1d(4)), "frozen"),
        (lambda: BatchRenorm1d(4, track_running_stats=False), "no reference: batch norm"),
        (lambda: nn.BatchNorm1d(4, track_running_stats=False), "none"),
        (LazyBatchRenorm2d, "not initialized"),
        (nn.LazyBatchNorm1d, "not initialized"),
    ],
)
def test_statistics(make, expected):
    assert row(make()).statistics == expected


def test_statistics_that_are_no_longer_updated():
    layer = BatchRenorm1d(4, limits=limits.fixed(2, 1))
    layer.track_running_stats = False
    found = row(layer)
    assert (found.statistics, found.r_max) == ("not updated", 2.0)


def test_without_reference_the_limits_are_batch_norms():
    found = row(BatchRenorm1d(4, track_running_stats=False, limits=limits.fixed(3, 5)))
    assert (found.r_max, found.d_max, found.step) == (1.0, 0.0, None)


def test_lazy_layer_has_no_channels_yet():
    model = nn.Sequential(LazyBatchRenorm2d())
    assert row(model).channels is None
    model(torch.randn(2, 3, 4, 4))
    assert row(model).channels == 3


def test_meta_device_has_no_step():
    found = row(BatchRenorm1d(4, device="meta", limits=limits.fixed(2, 1)))
    assert (found.step, found.r_max, found.d_max) == (None, 2.0, 1.0)


def tensors_only(step):
    return step.clamp(max=2) + 1, step * 0.0


def test_schedule_of_the_users():
    layer = BatchRenorm1d(4, limits=tensors_only)
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.fill_(7)
    found = row(layer)
    assert (found.r_max, found.d_max, found.limits) == (3.0, 0.0, "limits by tensors_only")
    assert "partial" in row(BatchRenorm1d(4, limits=partial(tensors_only))).limits


def test_parametrized_layer_has_its_own_type():
    layer = BatchRenorm1d(4)
    parametrize.register_parametrization(layer, "weight", nn.Tanh())
    assert row(layer).type == "BatchRenorm1d"


def test_nothing_is_changed():
    model = nn.Sequential(BatchRenorm1d(4), nn.BatchNorm1d(4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    str(summary(model))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        row(BatchRenorm1d(4)).step = 3  # type: ignore[misc]


def test_table():
    model = nn.ModuleDict(
        {
            "stem": BatchRenorm2d(16, limits=limits.fixed(1.5, 0.25)),
            "body": nn.Sequential(nn.BatchNorm2d(128), BatchRenorm2d(8, momentum=None)),
        }
    )
    freeze(model["stem"])
    assert str(summary(model)).splitlines() == [
        "layer   type             C  step  r_max  d_max  set  statistics",
        "stem    BatchRenorm2d   16     0    1.5   0.25  1    frozen",
        "body.0  BatchNorm2d    128     0      1      0  2    updated",
        "body.1  BatchRenorm2d    8     0      1      0  3    updated",
        "",
        "set 1: r_max 1.5, d_max 0.25",
        "       momentum 0.01, eps 1e-05",
        "set 2: batch norm",
        "       momentum 0.1, eps 1e-05",
        f"set 3: {limits.paper()}",
        "       plain average, eps 1e-05",
    ]


def test_activated_layers_say_what_they_do():
    model = nn.Sequential(
        BatchRenorm1d(4),
        nn.ReLU(),
        BatchRenormAct1d(4, act=nn.SiLU(), drop=nn.Dropout(0.5)),
        BatchRenormAct1d(4, act=nn.Identity()),
        BatchRenorm1d(4),
    )
    lines = str(summary(fuse(model))).splitlines()[:5]
    assert lines == [
        "layer  type              C  step  r_max  d_max  set  statistics  then",
        "0      BatchRenormAct1d  4     0      1      0  1    updated     fused with ReLU",
        "2      BatchRenormAct1d  4     0      1      0  1    updated     Dropout, SiLU",
        "3      BatchRenormAct1d  4     0      1      0  1    updated",
        "4      BatchRenorm1d     4     0      1      0  1    updated",
    ]


def test_equal_settings_are_written_once():
    text = str(summary(nn.Sequential(*(BatchRenorm1d(4, microbatch=2) for _ in range(3)))))
    assert text.count("momentum") == 1
    assert text.endswith("microbatch 2")


def test_long_names_fit_into_100_columns():
    model: nn.Module = BatchRenorm1d(2048, track_running_stats=False)
    for _ in range(20):
        model = nn.ModuleDict({"block": model})
    text = str(summary(model))
    line = text.splitlines()[1]
    assert max(map(len, text.splitlines())) <= 100
    assert line.startswith("block.b")
    assert ".." in line
    assert "k.block.block  BatchRenorm1d" in line


def test_model_itself():
    assert "\n(model)  BatchNorm1d" in str(summary(nn.BatchNorm1d(4)))


def test_model_without_a_layer():
    assert str(summary(nn.ReLU())) == "ReLU has no batch norm or batch renorm layer."
    assert summary(nn.ReLU()).rows == ()
