"""What batch normalization takes away of a gradient: theorem 4.1 of Santurkar et al., exactly."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.errors import ArgumentError
from renorm.measure.inputs import Array, call_of, mask_of
from renorm.measure.inputs import Call as Groups
from renorm.measure.layers import affine_of, eps_of, is_frozen
from renorm.measure.passes import Forward
from renorm.measure.points import Points
from renorm.measure.records import MODEL, GradientReduction
from renorm.measure.surveying import Loss
from renorm.nn import BatchRenorm, CrossIterationBatchNorm
from renorm.nn.activated import BatchRenormAct


class _Call(NamedTuple):
    """A call of a layer: what it was given, and what it gave, as the graph has them."""

    layer: nn.Module
    x: Tensor  # (N, C, *spatial)
    mask: Tensor | None
    groups: Groups
    y: Tensor


class _Group(NamedTuple):
    """Examples that are normalized together."""

    mean: Array  # (C,)
    var: Array  # (C,)
    slope: Array  # (C,), what the layer multiplies x - mean by
    eps: float


def gradient_reduction(
    model: nn.Module, batch: Any, loss: Loss, *, forward: Forward | None = None
) -> tuple[GradientReduction, ...]:
    """Both sides of theorem 4.1 for the batch norm and batch renorm layers of a model.

    Of a channel with m values x, normalized to ``x_hat = (x - mu_B) / sigma_B``, scaled by gamma
    and by batch renorm's r (1 for batch norm), with g the gradient of the layer's output::

        ||grad_x||^2 = (gamma r / sigma_B)^2
                       (||g||^2 - (1'g)^2 / m - (1 + eps / sigma_B^2) (g'x_hat)^2 / m)

    with eps inside of sigma_B. It is an equality, for any loss: the layer takes the mean of the
    gradient away and shrinks its direction along x_hat, so that for ``sigma_B >= gamma r`` the
    gradient of its input is the smaller one. The factor of the last term is the paper's 1 for eps
    = 0; for eps > 0 it follows from ``||x_hat||^2 = m (1 - eps / sigma_B^2)``.

    The model is run in train mode, and stays as it is, as ``landscape`` says it. It takes a forward
    and a backward.

    Args:
        model: in any mode.
        batch: as ``landscape`` takes it.
        loss: ``(output, batch) -> a scalar tensor``, as in training.
        forward: ``(model, batch) -> output``, for any other way to call the model.

    Returns:
        A record for each batch norm and batch renorm layer that normalizes by the batch, in the
        order of the model, with sums over the calls of a layer and over groups of examples that it
        normalizes apart. Layers with an activation of their own, with ``backward="moving"``, and
        cross-iteration layers are left out: theirs is another equation.

    Raises:
        ArgumentError: as ``landscape``, or there is no such layer that the batch reaches.

    Source: Santurkar et al. 2018 (arXiv 1805.11604), theorem 4.1, here with eps and with r.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Tanh()).double()
    >>> x = torch.randn(16, 3, dtype=torch.float64)
    >>> (found,) = gradient_reduction(model, x, lambda output, batch: output.pow(3).mean())
    >>> np.allclose(found.measured, found.predicted)
    True
    """
    points = Points(model, batch, loss, "train", forward)
    layers = {n or MODEL: m for n, m in points.model.named_modules() if _takes(m)}
    with _watched(layers) as calls:
        found = points.run(lambda value, parameters: _sums(value, calls))
    if not found:
        raise ArgumentError(
            f"{type(points.model).__name__} has no batch norm or batch renorm layer that "
            "normalizes the batch by its own statistics, so there is nothing to compare. Give one "
            "in train mode, and a batch that reaches its layers."
        )
    return tuple(GradientReduction(n, *map(tuple, found[n].tolist())) for n in layers if n in found)


def _takes(layer: nn.Module) -> bool:
    other = isinstance(layer, CrossIterationBatchNorm | BatchRenormAct)
    other = other or getattr(layer, "backward", "batch") == "moving"
    return isinstance(layer, _BatchNorm) and not other and not is_frozen(layer)


def _by_batch(layer: _BatchNorm) -> bool:
    return layer.training or layer.running_mean is None


@contextmanager
def _watched(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[_Call]]]:
    """The calls of layers by name, with inputs and outputs that nothing else has a part in."""
    calls: dict[str, list[_Call]] = {}
    given: dict[str, tuple[Tensor, Tensor | None, Groups]] = {}

    def before(name: str, layer: Any, args: tuple, kwargs: dict) -> Any:
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor) or not _by_batch(layer):
            return None
        mask = mask_of(args, kwargs) if isinstance(layer, BatchRenorm) else None
        # of its own, since the tensor may be an input of other modules, or need no gradient
        own = x.clone() if x.requires_grad else x.detach().requires_grad_()
        given[name] = own, mask, call_of(layer, x, mask)
        return ((own, *args[1:]), kwargs) if args else (args, {**kwargs, "input": own})

    def after(name: str, layer: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if name not in given:
            return None
        x, mask, groups = given.pop(name)
        calls.setdefault(name, []).append(_Call(layer, x, mask, groups, output))
        return output.clone()  # which may be written over

    with ExitStack() as stack:
        for name, layer in layers.items():
            first = layer.register_forward_pre_hook(partial(before, name), with_kwargs=True)
            stack.callback(first.remove)
            last = layer.register_forward_hook(partial(after, name))
            stack.callback(last.remove)
        yield calls


def _sums(value: Tensor, calls: dict[str, list[_Call]]) -> dict[str, Array]:
    """For every layer (5, C), in the order of the record's entries."""
    flat = [(name, call) for name, each in calls.items() for call in each]
    if not flat:
        return {}
    ends = [t for _, call in flat for t in (call.x, call.y)]
    gradients = torch.autograd.grad(value, ends, allow_unused=True, materialize_grads=True)
    found: dict[str, Array] = {}
    for i, (name, call) in enumerate(flat):
        found[name] = found.get(name, 0) + _of_call(call, gradients[2 * i], gradients[2 * i + 1])
    return found


def _of_call(call: _Call, dx: Tensor, dy: Tensor) -> Array:
    weight, _ = affine_of(call.layer)
    gamma = 1.0 if weight is None else weight.cpu().double().numpy()
    size = getattr(call.layer, "microbatch", None) or len(call.x)
    tensors = zip(call.x.split(size), dy.split(size), dx.split(size), strict=True)
    masks = None if call.mask is None else call.mask.split(size)
    total, groups = np.zeros((5, dx.shape[1])), call.groups
    for i, each in enumerate(tensors):
        x, g, d = (_values(t, None if masks is None else masks[i]) for t in each)
        group = _Group(groups.mean[i], groups.var[i], groups.slope[i] * gamma, eps_of(call.layer))
        total += _of_group(x, g, d, group)
    return total


def _values(x: Tensor, mask: Tensor | None) -> Array:
    """(C, m) float64 of (n, C, *spatial), without what the mask hides."""
    columns = x.detach().transpose(0, 1).flatten(1)
    kept = columns if mask is None else columns[:, mask.flatten()]
    return kept.cpu().double().numpy()


def _of_group(x: Array, g: Array, d: Array, group: _Group) -> Array:
    """(5, C) of inputs (C, m), with the gradients of outputs and of inputs."""
    square = group.var + group.eps
    x_hat = (x - group.mean[:, None]) / np.sqrt(square)[:, None]
    m, gain = x.shape[1], group.slope**2
    output = (g**2).sum(1)
    constant = gain * g.sum(1) ** 2 / m
    projection = gain * (1 + group.eps / square) * (g * x_hat).sum(1) ** 2 / m
    return np.array([output, gain * output, constant, projection, (d**2).sum(1)])
