"""Internal covariate shift by gradients: what earlier layers' updates do to a layer's gradient."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from renorm.errors import ArgumentError
from renorm.measure.passes import Forward
from renorm.measure.points import Mode, Points, Tensors, cosine, distance, norm
from renorm.measure.records import MODEL, CovariateShift
from renorm.measure.surveying import Loss

Groups = dict[str, tuple[str, ...]]


class _Layer(NamedTuple):
    name: str
    names: list[str]  # of its parameters
    weighs: bool  # whether one of them is more than a vector


def covariate_shift(
    model: nn.Module,
    batch: Any,
    loss: Loss,
    update: float | Mapping[str, Tensor],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    mode: Mode = "train",
    forward: Forward | None = None,
) -> tuple[CovariateShift, ...]:
    """How much the update of the layers before a layer changes its gradient, on the same batch.

    For the layers 1, ..., k in forward order, with parameters theta before and theta' after::

        G_i  = grad of L(theta_1, ..., theta_k) by theta_i
        G'_i = grad of L(theta'_1, ..., theta'_(i-1), theta_i, ..., theta_k) by theta_i

    Without a shift G'_i is G_i: the distance is 0 and the cosine 1, as they always are for the
    first layer. The model stays as it is, as ``landscape`` says it. It takes a forward and a
    backward for each layer, and one more forward.

    Args:
        model: that has theta, in any mode.
        batch: as ``landscape`` takes it.
        loss: ``(output, batch) -> a scalar tensor``, as in training.
        update: theta', by the names of ``model.named_parameters()``, those left out as they are;
            or a number, the learning rate of a plain step ``theta' = theta - update * grad L``.
        groups: what a layer is: name -> names of its parameters, in forward order. Parameters left
            out stay as they are. None: every module with a parameter of at least two dimensions of
            its own is a layer, in the order of their first calls; a module whose own parameters
            are vectors, such as batch norm, belongs to the layer called before it, and one that is
            not called itself to the module that it is a part of.
        mode: ``"train"`` or ``"eval"``, as ``landscape`` takes it.
        forward: ``(model, batch) -> output``, for any other way to call the model.

    Returns:
        A record for each layer, in forward order.

    Raises:
        ArgumentError: as ``landscape``; a name in ``update`` or ``groups`` that is no parameter
            with requires_grad, or stands there twice; a value of another shape; or a number that
            is not positive and finite.

    Source: Santurkar et al. 2018 (arXiv 1805.11604), definition 2.1.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    >>> def loss(output, batch):
    ...     return (output - batch[1]).square().mean()
    >>> found = covariate_shift(model, (torch.randn(16, 3), torch.randn(16, 1)), loss, 0.1)
    >>> [(one.layer, one.parameters) for one in found]
    [('0', ('0.weight', '0.bias', '1.weight', '1.bias')), ('3', ('3.weight', '3.bias'))]
    >>> found[0].distance
    0.0

    Of a training step with any optimizer, by a copy of the model from before it:

    >>> import copy
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> batch, before = (torch.randn(16, 3), torch.randn(16, 1)), copy.deepcopy(model)
    >>> loss(model(batch[0]), batch).backward()
    >>> optimizer.step()
    >>> len(covariate_shift(before, batch, loss, dict(model.named_parameters())))
    2
    """
    points = Points(model, batch, loss, mode, forward)
    layers = _in_forward_order(points) if groups is None else _given(groups, points)
    old = points.here().gradient
    new = _updated(points, update, old)
    moved: dict[str, Tensor] = {}
    found = []
    for name, names in layers.items():
        gradient = points.at(moved).gradient if moved else old
        found.append(_record(name, names, old, gradient))
        moved |= {one: new[one] for one in names if one in new}
    return tuple(found)


def _record(layer: str, names: tuple[str, ...], old: Tensors, shifted: Tensors) -> CovariateShift:
    before = {name: old[name] for name in names}
    after = {name: shifted[name] for name in names}
    return CovariateShift(
        layer=layer,
        parameters=names,
        norm=norm(before.values()),
        shifted_norm=norm(after.values()),
        distance=distance(before, after),
        cosine=cosine(before, after),
    )


def _in_forward_order(points: Points) -> Groups:
    """The layers of a model by their first calls."""
    called = _called(points)
    owners: dict[str, list[str]] = {}
    for name in points.parameters:
        owners.setdefault(_owner(name, called), []).append(name)
    order = [name for name in called if name in owners]
    order += [name for name in owners if name not in order]
    layers: list[_Layer] = []
    for owner in order:
        names = owners[owner]
        weighs = any(points.parameters[name].dim() > 1 for name in names)
        if not layers or (weighs and layers[-1].weighs):
            layers.append(_Layer(owner, names, weighs))
        else:  # vectors, or the weight that the vectors before it belong to
            last = layers[-1]
            layers[-1] = _Layer(
                owner if weighs else last.name, last.names + names, weighs or last.weighs
            )
    return {layer.name or MODEL: tuple(layer.names) for layer in layers}


def _called(points: Points) -> list[str]:
    """Names of the modules in the order of their first calls."""
    order: dict[str, None] = {}

    def note(name: str) -> None:
        order.setdefault(name)

    with ExitStack() as stack:
        for name, module in points.model.named_modules():
            if ".parametrizations." in f".{name}." or isinstance(module, torch.jit.ScriptModule):
                continue  # a part of the module whose weight it makes; what takes no hooks
            handle = module.register_forward_pre_hook(lambda module, args, name=name: note(name))
            stack.callback(handle.remove)
        points.run(lambda value, parameters: None)
    return list(order)


def _owner(parameter: str, called: list[str]) -> str:
    """The innermost module around a parameter that is called; the model if none is."""
    for name in _around(parameter):
        if name in called:
            return name
    return ""


def _around(parameter: str) -> Iterator[str]:
    name = parameter
    while name:
        name = name.rpartition(".")[0]
        yield name


def _given(groups: Mapping[str, Sequence[str]], points: Points) -> Groups:
    layers = {name: tuple(names) for name, names in groups.items()}
    names = [one for each in layers.values() for one in each]
    _check_names("groups", names, points)
    if not names or not all(layers.values()) or len(set(names)) < len(names):
        raise ArgumentError(
            "groups have at least one parameter each, and no parameter twice, got "
            f"{layers}. Give name -> names of parameters, in forward order."
        )
    return layers


def _updated(points: Points, update: Any, gradient: Tensors) -> dict[str, Tensor]:
    """The parameters after the update, by name."""
    own = points.parameters
    if isinstance(update, Mapping):
        _check_names("update", [n for n in update if n not in _constant(points)], points)
        new = {name: update[name].detach().to(own[name]) for name in own if name in update}
        for name, value in new.items():
            if value.shape != own[name].shape:
                raise ArgumentError(
                    f"update has {name} of shape {tuple(value.shape)}, but the model's is "
                    f"{tuple(own[name].shape)}. Give the parameters after the step, by name."
                )
        return new
    if (
        isinstance(update, bool)
        or not isinstance(update, int | float)
        or not 0 < update < torch.inf
    ):
        raise ArgumentError(
            "update has the parameters after the step by name, or is the learning rate of a plain "
            f"step, above 0 and finite, got {update!r}."
        )
    return {name: p - update * gradient[name] for name, p in own.items()}


def _constant(points: Points) -> set[str]:
    """Names of the parameters that do not learn, which an update may list."""
    return {n for n, p in points.model.named_parameters() if not p.requires_grad}


def _check_names(what: str, names: Sequence[str], points: Points) -> None:
    unknown = [name for name in names if name not in points.parameters]
    if unknown:
        raise ArgumentError(
            f"{what} names {', '.join(map(repr, unknown))}, which the model has not as a parameter "
            f"that learns. It has {', '.join(points.parameters)}."
        )
