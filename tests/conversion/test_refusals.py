"""What is refused, by name, before anything is changed."""

from functools import partial

import pytest
from torch import nn

from renorm import (
    BatchRenorm1d,
)
from renorm.conversion import convert, to_batchnorm
from renorm.errors import ArgumentError, ConversionError
from renorm.nn import BatchRenorm
from support.networks import network, sequential, table


def test_no_norm_layer():
    with pytest.raises(ConversionError, match="Linear has no batch norm layer"):
        convert(nn.Linear(3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 1e-3}, "no option eps; there are momentum, limits.*eps stay"),
        ({"limit": 3}, "no option limit; there are momentum"),
        ({"limits": (3, 5)}, "limits is called with the step"),
        ({"microbatch": 0}, "microbatch"),
        ({"momentum": 2}, "momentum"),
        ({"kernel": "none such"}, "no kernel"),
        ({"to": "group_norm"}, "to is 'batch_renorm', 'cross_iteration' or a callable"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_option_changes_nothing(options, message):
    model = network()
    with pytest.raises(ArgumentError, match=message):
        convert(model, **options)
    assert type(model[1]) is nn.BatchNorm2d
    assert model[1].momentum == 0.1


class Other(nn.BatchNorm1d):
    def forward(self, input):
        return 2 * super().forward(input)


class KeepsEval(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


class Unknown(nn.modules.batchnorm._BatchNorm):
    pass


class Trivial(nn.BatchNorm1d):
    """Changes its construction alone."""

    def __init__(self, channels):
        super().__init__(channels, eps=1e-3)
        self.note = "mine"

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.weight)


def with_forward_on_the_instance():
    layer = nn.BatchNorm1d(4)
    layer.forward = partial(nn.BatchNorm1d.forward, layer)
    return layer


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Other(4), r"Other\) defines its own forward"),
        (lambda: KeepsEval(4), r"KeepsEval\) defines its own train"),
        (lambda: Unknown(4), r"Unknown\) is none of torch's"),
        (with_forward_on_the_instance, r"forward \(set on the instance\)"),
        (lambda: nn.BatchNorm1d(4, eps=0), "has eps=0"),
    ],
    ids=["forward", "train", "unknown", "instance", "eps"],
)
def test_refused_by_name(make, why):
    model = sequential(nn.BatchNorm1d(4), nn.Sequential(make()))
    with pytest.raises(ConversionError, match=r"1\.0 \(.*" + why):
        convert(model)
    assert type(model[0]) is nn.BatchNorm1d
    convert(model, exclude="1.*")
    assert type(model[0]) is BatchRenorm1d
    assert not isinstance(model[1][0], BatchRenorm)


def test_every_refused_layer_is_listed():
    shared = Other(4)
    model = table(a=shared, b=KeepsEval(4), c=sequential(shared))
    with pytest.raises(ConversionError) as caught:
        convert(model)
    text = str(caught.value)
    assert "a = c.0 (" in text
    assert "\n  b (" in text
    assert "exclude=" in text
    assert "to=callable" in text


def test_trivial_subclass_there_and_back():
    layer = Trivial(4)
    assert type(convert(layer)) is BatchRenorm1d
    assert layer.note == "mine"
    assert type(to_batchnorm(layer)) is Trivial
    assert layer.note == "mine"
