"""Devices that train one model together, emulated in one process.

They have the parameters in common, and running statistics and whatever else a layer remembers each
for itself; the gradient is that of all their examples.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

STATISTICS = ("running_mean", "running_var", "running_moment")


def replicas(model: nn.Module, count: int) -> list[nn.Module]:
    """The model, and copies for ``count - 1`` other devices, which share its parameters alone."""
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    return [model, *(copy.deepcopy(model, dict(parameters)) for _ in range(count - 1))]


def average_statistics(devices: Sequence[nn.Module]) -> None:
    """Give the first the mean over all of each running mean and variance, or other moment.

    The variance is that within devices: how much their running means differ does not enter.
    """
    for layers in zip(*(device.modules() for device in devices), strict=True):
        for name in STATISTICS:
            mine = getattr(layers[0], name, None)
            if mine is not None:
                mine.copy_(torch.stack([getattr(layer, name) for layer in layers]).mean(0))


def joined(devices: Sequence[nn.Module]) -> nn.Module:
    """A model to be tested, with the mean of the running statistics of all devices."""
    if len(devices) == 1:
        return devices[0]
    first, *others = devices
    tested = copy.deepcopy(first)
    average_statistics([tested, *others])
    return tested
