"""include and exclude."""

import pytest
import torch
from torch import nn

from renorm.conversion import convert
from renorm.errors import ArgumentError
from renorm.nn import BatchRenorm


class Small(nn.BatchNorm2d):
    pass


def network():
    return nn.ModuleDict(
        {
            "stem": nn.BatchNorm2d(4),
            "layer1": nn.Sequential(nn.BatchNorm2d(4), Small(4)),
            "layer2": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        }
    )


def converted(model):
    return {name for name, m in model.named_modules() if isinstance(m, BatchRenorm)}


ALL = {"stem", "layer1.0", "layer1.1", "layer2.1"}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, ALL),
        ("layer1.*", None, {"layer1.0", "layer1.1"}),
        (["stem", "layer2.*"], None, {"stem", "layer2.1"}),
        (None, "stem", ALL - {"stem"}),
        ("layer*", "*.1", {"layer1.0"}),
        (None, Small, ALL - {"layer1.1"}),
        (Small, None, {"layer1.1"}),
        (lambda name, module: name.endswith("0"), None, {"layer1.0"}),
        (None, lambda name, module: isinstance(module, Small), ALL - {"layer1.1"}),
        (None, [Small, "stem", lambda name, module: name == "layer1.0"], {"layer2.1"}),
        (None, [], ALL),
    ],
)
def test_selectors(include, exclude, expected):
    assert converted(convert(network(), include=include, exclude=exclude)) == expected


def test_shared_layer_goes_by_any_of_its_names():
    norm = nn.BatchNorm1d(4)
    model = nn.ModuleDict({"a": norm, "b": norm, "c": nn.BatchNorm1d(4)})
    convert(model, exclude="b")
    assert type(norm) is nn.BatchNorm1d
    convert(model, include="b")
    assert isinstance(norm, BatchRenorm)


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_pattern_without_a_layer(argument):
    model = network()
    with pytest.raises(ArgumentError, match=r"like 'layer3\.0'.*nearest names are 'layer1\.0'"):
        convert(model, **{argument: "layer3.0"})
    assert not converted(model)


def test_pattern_that_names_a_container():
    with pytest.raises(ArgumentError, match=r"The layers inside are 'layer1\.\*'"):
        convert(network(), include="layer1")


def test_nothing_left():
    with pytest.raises(ArgumentError, match="leave none of the 4"):
        convert(network(), exclude="*")


@pytest.mark.parametrize("selector", [3, [3]])
def test_unknown_selector(selector):
    with pytest.raises(ArgumentError, match=r"glob on qualified names.*got 3"):
        convert(network(), include=selector)


def test_root_has_the_empty_name():
    layer = nn.BatchNorm2d(4)
    with pytest.raises(ArgumentError, match="such as the model itself"):
        convert(layer, exclude=nn.BatchNorm2d)
    assert isinstance(convert(layer, include=""), BatchRenorm)
    assert layer(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)
