"""The way back leaves nothing behind."""

import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, BatchRenormAct2d, freeze, limits
from renorm.conversion import convert, to_batchnorm
from renorm.errors import ArgumentError, ConversionError
from renorm.nn import BatchRenorm, LazyBatchRenorm2d


def network() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm1d(4)))
    model(torch.randn(8, 4))
    return model.eval()


@pytest.mark.parametrize(
    ("ours", "plain", "shape"),
    [
        (BatchRenorm1d, nn.BatchNorm1d, (8, 4)),
        (BatchRenorm2d, nn.BatchNorm2d, (4, 4, 3, 3)),
        (BatchRenorm3d, nn.BatchNorm3d, (2, 4, 3, 3, 3)),
    ],
)
def test_built_as_ours(ours, plain, shape):
    layer = ours(4, limits=limits.fixed(3, 5))
    layer(torch.randn(shape))
    layer.eval()
    x = torch.randn(shape)
    before = layer(x)
    assert type(to_batchnorm(layer)) is plain
    assert torch.equal(layer(x), before)


def test_built_lazy():
    assert type(to_batchnorm(LazyBatchRenorm2d())) is nn.LazyBatchNorm2d


def test_nothing_of_ours_is_left():
    plain = network()
    attributes = [set(vars(m)) for m in plain.modules()]
    model = to_batchnorm(convert(network(), microbatch=2, momentum=0.1))
    assert repr(model) == repr(plain)
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert b"renorm" not in pickle.dumps(model)


def test_nothing_of_ours_is_left_after_training():
    model = convert(network()).train()
    with torch.no_grad():
        model(torch.randn(8, 4))
    assert b"renorm" not in pickle.dumps(to_batchnorm(model))


def test_converted_model_survives_a_file():
    file = io.BytesIO()
    torch.save(convert(nn.SyncBatchNorm.convert_sync_batchnorm(network())), file)
    file.seek(0)
    model = torch.load(file, weights_only=False)
    assert type(to_batchnorm(model)[1]) is nn.SyncBatchNorm


def test_there_and_back_again_and_again():
    model, x = network(), torch.randn(8, 4)
    before = model(x)
    for _ in range(3):
        assert torch.equal(convert(model)(x), before)
        assert torch.equal(to_batchnorm(model)(x), before)
    assert type(model[1]) is nn.BatchNorm1d


def test_momentum_is_kept_unless_given():
    assert to_batchnorm(convert(nn.BatchNorm1d(4))).momentum == 0.01
    assert to_batchnorm(convert(nn.BatchNorm1d(4)), momentum=0.1).momentum == 0.1
    assert to_batchnorm(convert(nn.BatchNorm1d(4)), momentum=None).momentum is None


@pytest.mark.parametrize("momentum", [3, "stay"])
def test_bad_momentum(momentum):
    layer = BatchRenorm1d(4)
    with pytest.raises(ArgumentError, match=f"from 0 to 1, got {momentum!r}"):
        to_batchnorm(layer, momentum=momentum)
    assert type(layer) is BatchRenorm1d


def test_step_count_stays():
    layer = BatchRenorm1d(4)
    layer(torch.randn(8, 4))
    assert to_batchnorm(layer).num_batches_tracked == 1


def test_frozen_layer_is_then_an_ordinary_one():
    model = to_batchnorm(freeze(convert(network()))).train()
    before = model[1].running_mean.clone()
    model(torch.randn(8, 4) + 9)
    assert not torch.equal(model[1].running_mean, before)


def test_selection():
    model = convert(network())
    to_batchnorm(model, exclude="2.*")
    assert [type(model[1]), type(model[2][0])] == [nn.BatchNorm1d, BatchRenorm1d]
    to_batchnorm(model, include="2.*")
    assert type(model[2][0]) is nn.BatchNorm1d


def test_plain_model_is_left_alone():
    model = network()
    model[1].momentum = 0.3
    to_batchnorm(model, momentum=0.1)
    assert model[1].momentum == 0.3


def test_no_norm_layer():
    with pytest.raises(ConversionError, match="no batch norm layer"):
        to_batchnorm(nn.ReLU())


class Mine(BatchRenorm1d):
    def forward(self, input, mask=None):
        return -super().forward(input, mask)


def with_forward_on_the_instance():
    layer = BatchRenorm1d(4)
    layer.forward = layer.forward
    return layer


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: BatchRenorm(4), "takes input of any rank"),
        (lambda: BatchRenormAct2d(4, act=nn.ReLU()), "built with an activation"),
        (lambda: Mine(4), r"Mine\) is a class of its own"),
        (with_forward_on_the_instance, "defines its own forward"),
    ],
    ids=["any rank", "act", "subclass", "instance"],
)
def test_refused_by_name(make, why):
    model = nn.Sequential(BatchRenorm1d(4), nn.Sequential(make()))
    with pytest.raises(ConversionError, match=r"1\.0 \(.*" + why):
        to_batchnorm(model)
    assert type(model[0]) is BatchRenorm1d
