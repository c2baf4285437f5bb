"""Who is measured: nn.BatchNorm and our layers, by kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import renorm
from renorm import kernels, limits
from renorm.bench.registry import Shape
from renorm.errors import ArgumentError
from renorm.kernels import Averages, Call
from renorm.nn import BatchRenorm
from renorm.nn.gradient_averages import Backward

BASELINE = "nn.BatchNorm"
AUTO, MOVING = "auto", "moving"
# in the middle of the paper's ramps, so that limits are evaluated and corrections are at work
STEP = 20_000

_TORCH = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_OURS = {2: renorm.BatchRenorm1d, 4: renorm.BatchRenorm2d, 5: renorm.BatchRenorm3d}


@dataclass(frozen=True)
class Provider:
    """One way to make a layer for a shape.

    Args:
        name: in tables and records.
        build: a layer for a shape, with limits; nn.BatchNorm has no limits and ignores them.
        kernel: which kernel of ours is asked for, None if it is chosen or not ours.
        ours: whether it has to pass the gate.
        backward: what the backward pass of ours removes.
    """

    name: str
    build: Callable[[Shape, Any], nn.Module]
    kernel: str | None = None
    ours: bool = True
    backward: Backward = "batch"


def baseline() -> Provider:
    """What everybody uses today."""
    return Provider(BASELINE, _batch_norm, ours=False)


def ours(kernel: str) -> Provider:
    """Our layer with that kernel, or with the one that is chosen for the input if "auto".

    "moving" is the layer with ``backward="moving"``, and the kernel that is chosen for it.

    Raises:
        ArgumentError: there is no such kernel.
    """
    if kernel == AUTO:
        return Provider("renorm", _batch_renorm)
    if kernel == MOVING:
        return Provider(
            "renorm, moving",
            lambda shape, bounds: _batch_renorm(shape, bounds, backward="moving"),
            backward="moving",
        )
    if kernel not in kernels.names():
        there = ", ".join((AUTO, MOVING, *kernels.names()))
        raise ArgumentError(f"There is no kernel {kernel!r}; there are {there}.")
    return Provider(
        f"renorm, {kernel}",
        lambda shape, bounds: _batch_renorm(shape, bounds, kernel=kernel),
        kernel,
    )


def ready(provider: Provider, shape: Shape) -> nn.Module:
    """The layer as it is timed."""
    return mid_ramp(provider.build(shape, limits.paper()))


def mid_ramp(model: nn.Module) -> nn.Module:
    """The model with all our layers in the middle of their ramps."""
    for module in model.modules():
        if isinstance(module, BatchRenorm) and module.num_batches_tracked is not None:
            module.num_batches_tracked.fill_(STEP)
    return model


def kernel_for(provider: Provider, shape: Shape) -> str | None:
    """The kernel that serves this input in training; None if it is not ours.

    Raises:
        ArgumentError: the kernel that is asked for does not take this input.
    """
    if not provider.ours:
        return None
    channels = shape.sizes[1]
    dtype = getattr(torch, shape.dtype)
    x = torch.empty(shape.sizes, dtype=dtype, device=shape.device)
    zeros = torch.zeros(channels, device=shape.device)
    ones = torch.ones(channels, device=shape.device)
    averages = None
    if provider.backward == "moving":
        averages = Averages(torch.stack([zeros, zeros]), zeros[0], 0.3)
    call = Call(
        x, zeros, ones, ones, zeros, 3.0, 5.0, 0.01, 1e-5, relu=shape.relu, averages=averages
    )
    return kernels.choose(call, provider.kernel).kernel


def _batch_norm(shape: Shape, bounds: Any) -> nn.Module:
    layer = _TORCH[len(shape.sizes)](shape.sizes[1], device=shape.device)
    return nn.Sequential(layer, nn.ReLU()) if shape.relu else layer


def _batch_renorm(shape: Shape, bounds: Any, **options: Any) -> nn.Module:
    options = {"limits": bounds, "device": shape.device, **options}
    if shape.relu:
        return renorm.BatchRenormAct2d(shape.sizes[1], act=nn.ReLU(), **options)
    return _OURS[len(shape.sizes)](shape.sizes[1], **options)
