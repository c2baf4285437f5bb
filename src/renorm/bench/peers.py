"""Other implementations of batch renorm, where they are installed."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from renorm import reference
from renorm.bench.providers import Provider
from renorm.bench.registry import Shape
from renorm.environment import installed
from renorm.errors import ArgumentError

R_MAX, D_MAX = 3.0, 5.0


class UnavailableError(Exception):
    """Why a peer cannot be measured here."""


@dataclass(frozen=True)
class Peer:
    """Somebody else's layer.

    Args:
        name: in tables and records.
        package: the distribution, for its version; empty for a class given by its path.
        make: a layer for sizes (N, C, *spatial), past its warm-up where it has one, so that it
            renormalizes.
        target: how many times our time it should take at least on feature maps.
    """

    name: str
    package: str
    make: Callable[[tuple[int, ...]], nn.Module]
    target: float = 8.0

    def title(self) -> str:
        """Name and version."""
        version = installed(self.package) if self.package else None
        return f"{self.name} {version}" if version else self.name


class Keras(nn.Module):
    """Keras' layer, always in training, channels in dimension 1."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        os.environ.setdefault("KERAS_BACKEND", "torch")  # read once, by the first import of keras
        keras = _import("keras")
        if keras.backend.backend() != "torch":
            raise UnavailableError(
                f"its backend here is {keras.backend.backend()}: set KERAS_BACKEND=torch"
            )
        clipping = {"rmax": R_MAX, "rmin": 1 / R_MAX, "dmax": D_MAX}
        self.layer = keras.layers.BatchNormalization(axis=1, renorm=True, renorm_clipping=clipping)
        self.layer.build(sizes)
        self.eps = self.layer.epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, *spatial)."""
        return self.layer(x, training=True)


def _sb3(sizes: tuple[int, ...]) -> nn.Module:
    layers = _import("sb3_contrib.common.torch_layers")
    return layers.BatchRenorm1d(sizes[1], warmup_steps=-1)


def _torchrl(sizes: tuple[int, ...]) -> nn.Module:
    return _import("torchrl.modules").BatchRenorm1d(sizes[1], warmup_steps=0)


KNOWN = (
    Peer("Keras", "keras", Keras, target=5.0),
    Peer("sb3-contrib", "sb3-contrib", _sb3),
    Peer("TorchRL", "torchrl", _torchrl),
)


def by_path(path: str) -> Peer:
    """The class at ``package.module:Class``, called with the number of channels.

    Raises:
        ArgumentError: not such a path, or there is no such class.
    """
    module, _, name = path.partition(":")
    if not module or not name.isidentifier():
        raise ArgumentError(f"A peer is package.module:Class, got {path!r}.")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"The peer {path!r} cannot be imported: {error}.") from error
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise ArgumentError(f"The peer {path!r} is no class of modules but {found!r}.")
    return Peer(path, "", lambda sizes: found(sizes[1]))


class Admitted(NamedTuple):
    """A peer that runs, and how far its first output is from the paper's formula."""

    provider: Provider
    deviation: float


def admitted(peer: Peer, shape: Shape) -> Admitted:
    """The peer as a provider for inputs like ``shape``.

    It has to give finite output of the input's shape; it need not be right. The deviation is the
    largest of its first output from the paper's formula with its own eps, whichever is nearest of
    limits (3, 5) and (1, 0), and of the two ways in which a new layer's deviation of 1 is meant.

    Raises:
        UnavailableError: it is not installed, or does not take such an input.
    """
    small = Shape(shape.suite, (8, 6, *[5] * (len(shape.sizes) - 2)), device=shape.device)
    x = small.tensor(0)
    try:
        layer = _made(peer, small)
        y = layer(x)
    except UnavailableError:
        raise
    except Exception as error:  # whatever somebody else's code raises
        message = str(error).partition("\n")[0]
        raise UnavailableError(
            f"fails on {small.name}: {type(error).__name__}: {message}"
        ) from error
    if not isinstance(y, Tensor) or y.shape != x.shape or not bool(y.isfinite().all()):
        raise UnavailableError(f"gives no finite output of the input's shape on {small.name}")
    provider = Provider(peer.title(), lambda shape, _: _made(peer, shape), ours=False)
    return Admitted(provider, _deviation(y, x, float(getattr(layer, "eps", 1e-5))))


def _made(peer: Peer, shape: Shape) -> nn.Module:
    return peer.make(shape.sizes).to(shape.device).train()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"not installed ({error})") from error


def _deviation(y: Tensor, x: Tensor, eps: float) -> float:
    rows = reference.as_rows(x.detach().to("cpu", torch.float64).numpy())
    actual = reference.as_rows(y.detach().to("cpu", torch.float64).numpy())
    channels = rows.shape[1]
    zeros, ones = np.zeros(channels), np.ones(channels)
    exact = (
        reference.batch_renorm(
            rows, zeros, sigma, ones, zeros, r_max=r_max, d_max=d_max, alpha=0.01, eps=eps
        ).y
        for r_max, d_max in ((R_MAX, D_MAX), (1.0, 0.0))
        for sigma in (ones, np.sqrt(ones + eps))
    )
    return min(float(np.abs(actual - y).max()) for y in exact)
