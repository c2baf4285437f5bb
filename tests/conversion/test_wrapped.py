"""Models that are compiled, distributed, traced or exported."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from renorm import (
    BatchRenorm2d,
    limits,
)
from renorm.conversion import convert
from renorm.errors import ConversionError
from support.networks import network, sequential, trained


def test_compiled_model_runs_the_converted_layers():
    model = sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    compiled: Any = torch.compile(model, backend="eager")
    x = torch.randn(8, 4)
    compiled(x)
    convert(compiled, limits=limits.fixed(float("inf"), float("inf")))
    with torch.no_grad():
        model[1].running_mean.fill_(7.0)
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(compiled(x), expected)


def test_compiled_layer_runs_as_converted():
    layer = nn.BatchNorm1d(4)
    layer.compile(backend="eager")
    layer(torch.randn(8, 4))
    convert(layer, limits=limits.fixed(float("inf"), float("inf")))
    assert layer.running_mean is not None
    layer.running_mean.fill_(1e3)
    assert layer(torch.randn(8, 4)).mean() < -100


def test_graph_module():
    model = trained(network(), (2, 3, 9, 9))
    graph = torch.fx.symbolic_trace(model)
    x = torch.randn(2, 3, 9, 9)
    before = graph(x)
    convert(graph)
    assert torch.equal(graph(x), before)
    assert isinstance(graph.get_submodule("1"), BatchRenorm2d)


def test_exported_model_has_no_layer_left():
    program = torch.export.export(trained(nn.BatchNorm1d(4)), (torch.randn(8, 4),))
    with pytest.raises(ConversionError, match=r"exported .* converted before"):
        convert(program.module())
