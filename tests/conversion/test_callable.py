"""A callable as the target: layers are replaced."""

from typing import Any

import pytest
import torch
from torch import nn

from renorm import limits
from renorm.conversion import convert
from renorm.errors import ArgumentError


def group_norm(layer):
    return nn.GroupNorm(2, layer.num_features)


def sequential(*layers) -> Any:
    return nn.Sequential(*layers)


def test_layers_are_replaced():
    model = sequential(nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm1d(4)))
    assert convert(model, group_norm) is model
    assert [type(model[0]), type(model[1][0])] == [nn.GroupNorm, nn.GroupNorm]


def test_shared_layer_is_replaced_once_everywhere():
    norm = nn.BatchNorm1d(4)
    model = sequential(norm, nn.Sequential(norm, norm))
    calls = []
    convert(model, lambda layer: calls.append(layer) or group_norm(layer))
    assert calls == [norm]
    assert model[0] is model[1][0] is model[1][1]


def test_root_is_replaced_by_the_return_value():
    assert type(convert(nn.BatchNorm1d(4), group_norm)) is nn.GroupNorm


def test_flag_device_and_dtype_are_taken_over():
    model = sequential(nn.BatchNorm1d(4, device="meta", dtype=torch.float64)).eval()
    convert(model, group_norm)
    assert not model[0].training
    assert (model[0].weight.device.type, model[0].weight.dtype) == ("meta", torch.float64)


def test_layer_without_state_has_no_device_to_take_over():
    model = sequential(nn.BatchNorm1d(4, affine=False, track_running_stats=False))
    convert(model, group_norm)
    assert type(model[0]) is nn.GroupNorm


def test_replacement_may_hold_the_layer():
    model = sequential(nn.BatchNorm1d(4))
    norm = model[0]
    convert(model, lambda layer: nn.Sequential(layer, nn.ReLU()))
    assert model[0][0] is norm
    assert (model(torch.randn(8, 4)) >= 0).all()


def test_unknown_subclass_may_be_replaced():
    class Mine(nn.BatchNorm1d):
        def forward(self, input):
            return -input

    model = sequential(Mine(4))
    convert(model, group_norm)
    assert type(model[0]) is nn.GroupNorm


def test_failure_changes_nothing():
    model = sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="divisible"):
        convert(model, group_norm)
    with pytest.raises(ArgumentError, match="return a module, got None for 0"):
        convert(model, lambda layer: None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="got limits with a callable"):
        convert(model, group_norm, limits=limits.paper())
    assert [type(m) for m in model] == [nn.BatchNorm1d] * 2
