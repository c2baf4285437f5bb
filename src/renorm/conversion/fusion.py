"""A batch renorm layer and the ReLU behind it as one layer, and as two again."""

from collections import Counter
from typing import TypeVar

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from renorm.conversion.classes import become
from renorm.conversion.selection import Selection, norm_layers, select
from renorm.conversion.sequence import Place, neighbours, uses
from renorm.errors import ArgumentError
from renorm.nn import (
    BatchRenorm,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    BatchRenormAct,
    BatchRenormAct1d,
    BatchRenormAct2d,
    BatchRenormAct3d,
)
from renorm.nn.hooks import output_watched, watched

M = TypeVar("M", bound=nn.Module)

_ACTIVATED: dict[type[BatchRenorm], type[BatchRenormAct]] = {
    BatchRenorm1d: BatchRenormAct1d,
    BatchRenorm2d: BatchRenormAct2d,
    BatchRenorm3d: BatchRenormAct3d,
}


def fuse(model: M, *, include: Selection = None, exclude: Selection = None) -> M:
    """Take every nn.ReLU that follows a batch renorm layer into that layer, in place.

    The layers stay the same objects and become ``BatchRenormAct1d``, ``2d`` or ``3d``; an
    nn.Identity takes the place of the ReLU, which the layer now holds. So parameters, buffers,
    the keys of the state_dict and an optimizer's references all stay, and so do the outputs.
    ``unfuse`` undoes it, and ``to_batchnorm`` does so by itself.

    A pair is fused where it is certain to run as one: neighbours in an nn.Sequential, also across
    the end of one inside another. Left alone are a layer that is used in several places; a layer
    or a ReLU with hooks that would see another output; a Sequential with a forward of its own;
    and what no module tree shows, ``F.relu`` in a forward: there, use the layers themselves,
    which also take the residual. Leave out with ``exclude`` a layer of which something else reads
    the output, as a forward does that iterates over a Sequential to collect features.

    Args:
        model: changed in place.
        include: the batch renorm layers to fuse, as for ``convert``; None for all.
        exclude: the layers to leave as they are, in the same forms.

    Returns:
        The model.

    Raises:
        ArgumentError: there is nothing to fuse, or a selection matches nothing.

    >>> from renorm.conversion import convert
    >>> model = convert(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()))
    >>> [type(layer).__name__ for layer in fuse(model)]
    ['Linear', 'BatchRenormAct1d', 'Identity']
    """
    pairs = [
        (first.module, second)
        for first, second in neighbours(model)
        if isinstance(first.module, BatchRenorm) and type(second.module) is nn.ReLU
    ]
    if include is not None or exclude is not None:
        chosen = {site.layer for site in select(norm_layers(model), include, exclude)}
        pairs = [(layer, place) for layer, place in pairs if layer in chosen]
    used = uses(model)
    obstacles = {layer: _obstacle(layer, place.module, used) for layer, place in pairs}
    if not any(why is None for why in obstacles.values()):
        raise _nothing(model, obstacles)
    for layer, place in pairs:
        if obstacles[layer] is None:
            _join(layer, place)
    return model


def unfuse(model: M) -> M:
    """Undo ``fuse``: every layer it made is what it was, and the ReLU is in its place again.

    Args:
        model: changed in place.

    Returns:
        The model.

    Raises:
        ArgumentError: no layer was fused, or the nn.Identity behind one is gone; then nothing
            was changed.

    >>> unfuse(fuse(nn.Sequential(BatchRenorm1d(4), nn.ReLU())))[1]
    ReLU()
    """
    layers = {m: name for name, m in model.named_modules() if was_fused(m)}
    if not layers:
        raise ArgumentError(
            f"{type(model).__name__} has no layer that renorm.fuse made, so there is nothing to "
            "undo. A BatchRenormAct layer that was built as one stays one."
        )
    places = places_of_relu(model)
    lost = [name or "the model" for layer, name in layers.items() if layer not in places]
    if lost:
        lines = "\n".join(f"  {name} {LOST}" for name in lost)
        raise ArgumentError(
            f"These layers cannot be parted:\n{lines}\nNothing was changed. Put an nn.Identity "
            "behind each of them in its nn.Sequential, and give the model that holds both."
        )
    for layer in layers:
        separate(layer, places[layer])
    return model


LOST = "was fused with a ReLU, and the nn.Identity that kept its place is not behind it"


def was_fused(module: nn.Module) -> bool:
    """Whether ``fuse`` made this layer."""
    return "_fused_from" in vars(module)


def places_of_relu(model: nn.Module) -> dict[nn.Module, Place]:
    """For each layer that ``fuse`` made, the nn.Identity behind it, where it is."""
    used = uses(model)
    return {
        first.module: second
        for first, second in neighbours(model)
        if was_fused(first.module)
        and used[first.module] == 1
        and type(second.module) is nn.Identity
        and not watched(second.module)
    }


def separate(layer: nn.Module, place: Place) -> None:
    """Give a fused layer its class again, and the ReLU its place."""
    assert isinstance(layer, BatchRenormAct)
    place.put(layer.act)
    del layer.act, layer.drop
    become(layer, vars(layer).pop("_fused_from"))


def _join(layer: BatchRenorm, place: Place) -> None:
    relu = place.module
    cls = type_before_parametrizations(layer)
    become(layer, _ACTIVATED[cls])
    vars(layer)["_fused_from"] = cls
    layer.drop = nn.Identity().train(relu.training)
    layer.act = relu
    place.put(nn.Identity().train(relu.training))


def _obstacle(layer: BatchRenorm, relu: nn.Module, used: Counter[nn.Module]) -> str | None:
    cls = type_before_parametrizations(layer)
    if isinstance(layer, BatchRenormAct):
        return "has an activation already"
    if cls not in _ACTIVATED:
        return f"is a {cls.__name__}; BatchRenorm1d, 2d and 3d have an activated class"
    if used[layer] > 1:
        return "is used in several places, and would activate in all of them"
    if output_watched(layer):
        return "has a hook, or a forward of its own, that would see the activated output"
    if watched(relu):
        return "is followed by a ReLU with hooks, or with a forward of its own"
    return None


def _nothing(model: nn.Module, obstacles: dict[BatchRenorm, str | None]) -> ArgumentError:
    text = f"{type(model).__name__} has nothing to fuse: "
    if obstacles:
        names = {m: name for name, m in model.named_modules()}
        lines = "\n".join(f"  {names[layer]} {why}" for layer, why in obstacles.items())
        return ArgumentError(f"{text}no pair of batch renorm and ReLU can be one layer.\n{lines}")
    return ArgumentError(
        f"{text}no batch renorm layer is followed by an nn.ReLU in an nn.Sequential. Convert batch "
        "norm layers first with renorm.convert(model); where a forward calls F.relu, use a "
        "BatchRenormAct layer there, which also takes a residual."
    )
