"""Conversion of and to layers that share their statistics."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import renorm
from renorm.distributed import Exchange, sync_running
from renorm.nn import BatchRenorm


def net() -> Any:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))


@pytest.mark.parametrize("sync", ["batch", "running", None])
def test_convert_sets_what_is_shared(sync: Any) -> None:
    model = renorm.convert(net(), sync=sync)
    assert [model[1].sync, model[3].sync] == [sync, sync]
    assert isinstance(model[1]._deferral, Exchange) == (sync == "running")
    assert {row.sync for row in renorm.summary(model).rows} == {sync or ""}
    x = torch.randn(2, 3, 6, 6)
    plain = renorm.convert(net())
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), plain(x))  # alone: nothing to share
    renorm.to_batchnorm(model)
    assert not vars(model[1]).keys() - vars(nn.BatchNorm2d(4)).keys()
    assert not model._forward_hooks
    assert type(model[1]) is nn.BatchNorm2d


def test_synchronized_batch_norm_goes_on_sharing_and_comes_back() -> None:
    layer: Any = nn.Sequential(nn.SyncBatchNorm(4, process_group="group"))
    renorm.convert(layer)
    assert (layer[0].sync, layer[0].process_group) == ("batch", "group")
    renorm.to_batchnorm(layer)
    assert type(layer[0]) is nn.SyncBatchNorm
    assert layer[0].process_group == "group"
    assert vars(layer[0]).keys() == vars(nn.SyncBatchNorm(4)).keys()


def test_synchronized_batch_norm_shares_nothing_if_told_so() -> None:
    layer: Any = renorm.convert(nn.Sequential(nn.SyncBatchNorm(4)), sync=None)
    assert layer[0].sync is None


def test_failed_conversion_changes_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.SyncBatchNorm(4))
    with pytest.raises(renorm.ArgumentError, match="microbatch=2"):
        renorm.convert(model, microbatch=2)  # the second would share its batch
    assert [type(m) for m in model] == [nn.BatchNorm1d, nn.SyncBatchNorm]
    inner = sync_running(nn.Sequential(BatchRenorm(4)))
    outer = nn.Sequential(inner, nn.BatchNorm1d(4))
    with pytest.raises(renorm.ArgumentError, match="already put off"):
        renorm.convert(outer, sync="running")
    assert type(outer[1]) is nn.BatchNorm1d


@pytest.mark.parametrize("sync", [None, "batch", "running"])
def test_torch_cannot_take_a_layer_away_without_a_word(sync: Any) -> None:
    model = renorm.convert(net(), sync=sync)
    with pytest.raises(renorm.ConversionError, match="sync='batch'"):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model[1], BatchRenorm)


def test_layer_has_no_qconfig_until_it_is_given_one() -> None:
    layer: Any = renorm.BatchRenorm1d(2)
    assert not hasattr(layer, "qconfig")
    layer.qconfig = "observer"
    assert layer.qconfig == "observer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sync": "all"}, "None, 'batch' or 'running', got 'all'"),
        ({"process_group": "group"}, "sync=None shares none"),
        ({"sync": "batch", "microbatch": 4}, "microbatch=4"),
    ],
)
def test_settings_that_contradict_are_refused(options: Any, message: str) -> None:
    with pytest.raises(renorm.ArgumentError, match=message):
        renorm.BatchRenorm2d(4, **options)


def test_group_is_copied_with_a_model_and_not_written() -> None:
    group = object()
    layer = renorm.BatchRenorm2d(4, sync="batch", process_group=group)
    assert copy.deepcopy(layer).process_group is group
    with pytest.raises(renorm.ArgumentError, match="state_dict"):
        pickle.dumps(layer)
    layer.process_group = None
    assert pickle.loads(pickle.dumps(layer)).sync == "batch"


def test_model_without_layers_to_share_is_refused() -> None:
    for model in (net(), nn.Sequential(BatchRenorm(4, sync="batch"))):
        with pytest.raises(renorm.ArgumentError, match="no batch renorm layer with"):
            sync_running(model)


def test_reconfigured_layer_shares_no_longer() -> None:
    model = sync_running(nn.Sequential(BatchRenorm(4)))
    layer: Any = model[0]
    layer.configure()
    assert layer.sync is None
    assert not model._forward_hooks
    layer(torch.randn(3, 4))
    assert int(layer.num_batches_tracked) == 1
