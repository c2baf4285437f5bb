"""Fresh nets of the lab, or of a user, with each normalizer: how they propagate."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.lab import models, normalizers
from renorm.lab.normalizers import Setting
from renorm.lab.own import Kind, module_at, shown
from renorm.measure import Prediction
from renorm.measure import predict as predicted
from renorm.measure.predicting import Progress
from renorm.names import parsed, with_options

CLASSES = 10
STEPS = 1000  # that limits and momenta are set up for, which say nothing of a fresh net
OPTIONS = ("depth", "width", "stages")
_KIND = Kind("net", "my_net.py:MyNet", "a class or function in it gives the model")


@dataclass(frozen=True)
class Net:
    """A net to try normalizers in.

    Args:
        name: as in ``plain(depth=20)``, or file.py:Name.
        build: () -> a new net with nn.BatchNorm, its weights drawn from torch's generator.
    """

    name: str
    build: Callable[[], nn.Module]


def net_of(model: str, shape: tuple[int, ...], **options: int | None) -> Net:
    """The net that a user means.

    Args:
        model: a name of ``renorm.lab.models``, with or without options, or file.py:Name or
            module:Name of a class or function that gives a model with nn.BatchNorm layers.
        shape: of an input without the batch.
        **options: of the net besides those in its name; None for those not given.

    Raises:
        ArgumentError: there is no such net or option.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if ":" in model:
        if given:
            raise ArgumentError(
                f"A net of your own has the sizes you build it with, got {', '.join(given)} for "
                f"{model}. Leave them out."
            )
        return Net(model, _own(model))
    base, named = parsed("net", model)
    entry = models.find(base)
    unknown = [name for name in given if name not in entry.options]
    if unknown:
        flexible = [one.name for one in models.MODELS.values() if "depth" in one.options]
        raise ArgumentError(
            f"The net {entry.name!r} has a fixed {unknown[0]}. Leave it out, or choose "
            f"{' or '.join(flexible)}, which have {', '.join(OPTIONS)}."
        )
    found = models.find(with_options(entry.name, named | given))
    return Net(found.name, lambda: found.build(shape, CLASSES))


def predict(
    net: Net,
    names: Iterable[str],
    batch: Tensor,
    *,
    seeds: int = 1,
    progress: Progress | None = None,
) -> tuple[Prediction, ...]:
    """How fresh nets with each normalizer propagate, the best first.

    Args:
        net: as ``net_of`` gives it.
        names: of normalizers, as ``renorm.lab.normalizers.find`` takes them.
        batch: (N, ...).
        seeds: draws of the weights.
        progress: as ``renorm.measure.predict`` takes it.

    Raises:
        ArgumentError: an unknown normalizer, one that does not fit the net, or an error of a
            user's own net, such as for examples of another shape than it takes.
    """
    entries = {name: normalizers.find(name) for name in normalizers.names(names)}
    setting = Setting(None, STEPS, batch[:2])

    def build(name: str) -> nn.Module:
        return entries[name].apply(net.build(), setting)

    subject = f"The net {net.name}, given examples of the shape {tuple(batch.shape[1:])},"
    with shown(subject) if ":" in net.name else nullcontext():
        return predicted(build, entries, batch, seeds=seeds, progress=progress)


def gaussian(shape: tuple[int, ...], examples: int, seed: int = 0) -> Tensor:
    """A batch (N, *shape) of independent standard Gaussian numbers."""
    if examples < 2 or not shape or min(shape) < 1:
        raise ArgumentError(
            f"A batch has at least 2 examples, which are compared, of a shape of numbers from 1 "
            f"on, got {examples} of {shape}."
        )
    return torch.randn(examples, *shape, generator=torch.Generator().manual_seed(seed))


def _own(target: str) -> Callable[[], nn.Module]:
    place, _, name = target.rpartition(":")
    module = module_at(place, _KIND)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ArgumentError(
            f"{place} has no {name!r} that can be called. Give the name of a class or a function "
            "without arguments, that gives the model, after the colon."
        )

    def build() -> nn.Module:
        with shown(f"The net {target}"):
            found: Any = factory()
        if not isinstance(found, nn.Module):
            raise ArgumentError(
                f"{target} must give an nn.Module, got {type(found).__name__}. Return the model."
            )
        return found

    return build
