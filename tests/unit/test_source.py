"""Which layers can be the source of a norm, and the words for those that cannot."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm
from torch.nn.utils import spectral_norm as old_spectral_norm

from renorm.nn.source import Source, obstacle
from support import torchvision_shim


class Renamed(nn.Conv2d):
    """Changes its construction, and adds what its forward does not use."""

    def __init__(self, channels):
        super().__init__(3, channels, 1)

    def penalty(self):
        return self.weight.square().sum()


class Standardized(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Derived(Renamed, Standardized):
    pass


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 4),
        nn.Linear(3, 4, bias=False),
        nn.Conv1d(3, 4, 3),
        nn.Conv2d(4, 4, 3, groups=2, stride=2, padding="valid"),
        nn.Conv3d(3, 4, 1, dilation=2),
        nn.Linear(3, 4, device="meta"),
        nn.Conv2d(3, 4, 1, dtype=torch.bfloat16),
        Renamed(4),
    ],
    ids=str,
)
def test_source(module):
    assert isinstance(module, Source)
    assert obstacle(module, 4) is None


def test_lazy_layer_is_a_source_after_its_first_forward():
    layer = nn.LazyConv2d(4, 1)
    why = obstacle(layer, 4)
    assert why is not None
    assert "lazy" in why
    assert "run the model once" in why
    layer(torch.randn(2, 3, 5, 5))
    assert obstacle(layer, 4) is None


def replaced(name):
    layer = nn.Linear(3, 4)
    setattr(layer, name, getattr(layer, "forward"))  # noqa: B009 - as wrappers do it
    return layer


def without_weight():
    layer = nn.Linear(3, 4)
    layer.register_parameter("weight", None)
    return layer


def pruned(name):
    return prune.l1_unstructured(nn.Conv2d(3, 4, 1), name, 0.5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.MaxPool2d(2), ["is a MaxPool2d, and", "nn.Linear or an nn.Conv1d"]),
        (nn.Identity, ["is an Identity, and"]),
        (lambda: nn.BatchNorm2d(4), ["is a BatchNorm2d, and"]),
        (lambda: nn.Bilinear(3, 3, 4), ["is a Bilinear, and"]),
        (lambda: nn.Sequential(nn.Linear(3, 4)), ["is a Sequential, and"]),
        (lambda: nn.ConvTranspose1d(3, 4, 1), ["is a ConvTranspose1d", "transposed"]),
        (lambda: nn.ConvTranspose2d(3, 4, 1), ["is a ConvTranspose2d", "transposed"]),
        (lambda: nn.ConvTranspose3d(3, 4, 1), ["is a ConvTranspose3d", "transposed"]),
        (lambda: Standardized(3, 4, 1), ["is a Standardized", "its own _conv_forward"]),
        (lambda: Scaled(3, 4), ["is a Scaled", "its own forward"]),
        (lambda: Derived(4), ["is a Derived", "its own _conv_forward"]),
        (lambda: replaced("forward"), ["its own forward (set on the instance)"]),
        (lambda: nn.Linear(3, 5), ["gives 5 channels, and the norm takes 4"]),
        (lambda: nn.Conv2d(4, 3, 1), ["gives 3 channels, and the norm takes 4"]),
        (lambda: nn.Linear(3, 4, dtype=torch.complex64), ["torch.complex64"]),
        (lambda: pruned("weight"), ["its weight", "pruning"]),
        (lambda: pruned("bias"), ["its bias", "pruning"]),
        (lambda: old_spectral_norm(nn.Linear(3, 4)), ["its weight", "spectral_norm"]),
        (
            lambda: parametrizations.weight_norm(nn.Conv1d(3, 4, 1)),
            ["its weight", "parametrizations", "weight_norm"],
        ),
        (lambda: parametrizations.spectral_norm(nn.Linear(3, 4)), ["its weight"]),
        (lambda: parametrizations.weight_norm(nn.Linear(3, 4), "bias"), ["its bias"]),
        (without_weight, ["has no weight"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_no_source(make, words):
    why = obstacle(make(), 4)
    assert why is not None
    assert all(word in why for word in words), why


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weight_norm_of_the_old_kind():
    why = obstacle(weight_norm(nn.Linear(3, 4)), 4)
    assert why is not None
    assert "its weight" in why
    assert "weight_norm" in why


def test_timm_convolutions():
    layers = torchvision_shim.timm().layers
    for cls in (layers.Conv2dSame, layers.StdConv2d, layers.ScaledStdConv2d):
        why = obstacle(cls(3, 4, 3), 4)
        assert why is not None
        assert f"is a {cls.__name__} and defines its own" in why
