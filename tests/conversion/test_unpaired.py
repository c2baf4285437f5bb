"""Norms that normalize something else than the output of one layer are refused by name."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from renorm.conversion.pairing import pair
from renorm.conversion.selection import norm_layers
from renorm.errors import ConversionError


class Model(nn.Module):
    """Two convolutions, a norm, and what a test has between them."""

    def __init__(self, between, **modules):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.other = nn.Conv2d(3, 3, 1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.norm = nn.BatchNorm2d(3)
        self.between = between

    def forward(self, x) -> Any:
        return self.between(self, x)


def refusal(model, example=None):
    with pytest.raises(ConversionError) as caught:
        pair(model, norm_layers(model), example)
    return str(caught.value)


def images():
    return torch.randn(2, 3, 8, 8)


class DropPath(nn.Module):
    """Drops whole samples in training."""

    def forward(self, x):
        return x * torch.rand(len(x), 1, 1, 1).round() if self.training else x


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def shifted(m, x):
    y = m.conv(x)
    y += 1
    return m.norm(y)


@pytest.mark.parametrize(
    ("forward", "modules", "words"),
    [
        (
            lambda m, x: m.norm(m.conv(x) + m.other(x)),
            {},
            "norm .* is fed by the result of torch.Tensor.add, which is the output of no layer; "
            "the last one called before is other",
        ),
        (
            lambda m, x: m.norm(torch.cat([m.conv(x), m.other(x)])),
            {},
            "is fed by the result of torch.cat, which is the output of no layer",
        ),
        (lambda m, x: m.norm(F.relu(m.conv(x))), {}, "result of torch.nn.functional.relu"),
        (lambda m, x: m.norm(m.conv(x)[:, :3]), {}, "result of torch.Tensor.__getitem__"),
        (
            lambda m, x: m.norm(m.conv(x).flatten(2).unsqueeze(-1)),
            {},
            "result of torch.Tensor.unsqueeze, .*before is conv",
        ),
        (lambda m, x: m.norm(m.conv(x).view(1, 3, -1, 2)), {}, "result of torch.Tensor.view"),
        (
            lambda m, x: m.norm(m.flat(m.conv(x))[..., None]),
            {"flat": nn.Flatten(2)},
            "__getitem__, .*before is flat",
        ),
        (
            lambda m, x: m.norm(m.pool(m.conv(x))),
            {"pool": nn.MaxPool2d(2)},
            "norm .* is fed by pool, which is a MaxPool2d, and a source is",
        ),
        (lambda m, x: m.norm(m.act(m.conv(x))), {"act": nn.SiLU()}, "fed by act, which is a SiLU"),
        (
            lambda m, x: m.norm(m.act(m.conv(x))),
            {"act": nn.ReLU(inplace=True)},
            "fed by act, which is a ReLU",
        ),
        (
            lambda m, x: m.norm(m.drop(m.conv(x))),
            {"drop": nn.Dropout()},
            "fed by drop, which is a Dropout",
        ),
        (
            lambda m, x: m.norm(m.drop(m.conv(x))),
            {"drop": nn.Sequential(nn.Identity(), nn.Dropout(), nn.Identity())},
            "fed by drop.1, which is a Dropout",
        ),
        (
            lambda m, x: m.norm(m.path(m.conv(x))),
            {"path": DropPath()},
            "fed by path, which is a DropPath",
        ),
        (
            lambda m, x: m.norm(m.path(m.drop(m.conv(x)))),
            {"path": DropPath(), "drop": nn.Dropout()},
            "fed by path, which is a DropPath",
        ),
        (
            lambda m, x: m.norm(F.dropout(m.conv(x), training=m.training)),
            {},
            "fed by conv, but through torch.nn.functional.dropout, which may change it in training",
        ),
        (shifted, {}, "fed by conv, whose output torch.Tensor.add_ changes in place before"),
        (
            lambda m, x: m.norm(F.relu(m.conv(x), inplace=True)),
            {},
            "fed by conv, whose output torch.nn.functional.relu changes in place",
        ),
        (lambda m, x: m.norm(m.conv(m.conv(x))), {}, "fed by conv, which is used 2 times"),
        (lambda m, x: m.norm(m.norm(m.conv(x))), {}, "norm .* is called 2 times in a forward"),
        (lambda m, x: m.conv(x), {}, "norm .* is not called by the example in eval mode"),
        (
            lambda m, x: m.norm(m.twice(m.conv(x))),
            {"twice": Double()},
            "fed by twice, which is a Double",
        ),
        (lambda m, x: m.norm(x), {}, "norm .* is fed by the model's own input"),
        (lambda m, x: m.norm(m.id(x)), {"id": nn.Identity()}, "fed by the model's own input"),
        (lambda m, x: m.norm(m.wide(x)), {"wide": nn.ConvTranspose2d(3, 3, 1)}, "transposed"),
        (
            lambda m, x: m.norm(m.normed(x)),
            {"normed": parametrizations.weight_norm(nn.Conv2d(3, 3, 1))},
            "fed by normed, which has no parameter of its own for its weight",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_refused_with_an_example(forward, modules, words):
    message = refusal(Model(forward, **modules), images())
    assert pytest.RaisesExc(ConversionError, match=words).matches(ConversionError(message)), message
    assert message.count("\n  ") == 1
    assert "exclude=" in message
    assert "compensation='none', which needs no source" in message
    assert "example=" not in message


def test_change_in_place_is_seen_in_inference_mode():
    with torch.inference_mode():
        message = refusal(Model(shifted), images())
    assert "norm (" in message
    assert "fed by conv, whose output torch.Tensor.add_ changes in place before" in message


def test_norm_on_a_norm():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    assert "2 (torch.nn.modules.batchnorm.BatchNorm2d) is fed by 1, which is a BatchNorm2d" in (
        refusal(model, images())
    )
    assert "comes after 1, which is a BatchNorm2d" in refusal(model)


def test_hook_that_replaces_the_output_of_a_source():
    def negate(module, args, output):
        return -output

    model = Model(lambda m, x: m.norm(m.conv(x)))
    model.conv.register_forward_hook(negate)
    message = refusal(model, images())
    assert "norm (" in message
    assert "fed by conv, whose output is replaced by a forward hook" in message


def test_model_that_is_a_norm():
    layer = nn.BatchNorm2d(3)
    name = "the model itself (torch.nn.modules.batchnorm.BatchNorm2d)"
    assert f"{name} has no layer registered before it" in refusal(layer)
    assert f"{name} is fed by the model's own input" in refusal(layer, images())


class TwoNorms(nn.Module):
    """A norm for each domain behind one convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 3, 1))
        self.norm = nn.BatchNorm2d(3)
        self.branch = Branch(self.conv)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + self.branch.norm(y)


class Branch(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.add_module("conv", conv)
        self.norm = nn.BatchNorm2d(3)


def test_source_of_two_norms():
    message = refusal(TwoNorms(), images())
    assert "norm (torch.nn.modules.batchnorm.BatchNorm2d) shares its source" in message
    assert "branch.norm (torch.nn.modules.batchnorm.BatchNorm2d) shares its source" in message
    assert "conv.0 = branch.conv.0, with branch.norm" in message
    assert "conv.0 = branch.conv.0, with norm" in message


def test_one_of_two_norms_alone_has_the_source():
    model = TwoNorms()
    sites = [site for site in norm_layers(model) if site.names == ("norm",)]
    assert pair(model, sites, images()) == {model.norm: model.conv[0]}


def shared_norm():
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm)


def shared_source():
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3))


def test_shared_norm():
    assert "1 = 3 (torch.nn.modules.batchnorm.BatchNorm2d) is used in several places" in (
        refusal(shared_norm())
    )
    assert "is called 2 times in a forward" in refusal(shared_norm(), images())


def test_shared_source():
    for message in (refusal(shared_source()), refusal(shared_source(), images())):
        assert message.count("0 = 2, which is used 2 times") == 2
        assert "  1 (" in message
        assert "  3 (" in message


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), "1 .* comes after 0, which is a ReLU"),
        (nn.Sequential(nn.BatchNorm2d(3)), "0 .* has no layer registered before it"),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(), nn.BatchNorm2d(3)),
            "2 .* comes after 1, which is a Dropout",
        ),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(3)), "0, which gives 5 channels"),
        (nn.Sequential(nn.Identity(), nn.BatchNorm2d(3)), "1 .* has no layer registered"),
        (
            nn.ModuleList([nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)]),
            "2 .* comes after 1, which is a BatchNorm2d",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), *2 * [nn.Identity()], nn.BatchNorm2d(3)),
            "3 .* comes after 1 = 2, which is an Identity",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_refused_without_an_example(model, words):
    with pytest.raises(ConversionError, match=words) as caught:
        pair(model, norm_layers(model))
    message = str(caught.value)
    assert message.count("\n  ") == 1
    assert "example=..., would settle it" in message
    assert "exclude=" in message
    assert "compensation='none'" in message
