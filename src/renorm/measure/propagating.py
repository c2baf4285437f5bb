"""How signals and gradients propagate through a model, at initialization or between two steps."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from renorm.calibration.measurement import set_modes
from renorm.errors import ArgumentError
from renorm.measure import examples
from renorm.measure.apart import apart
from renorm.measure.layers import is_frozen, normalizes
from renorm.measure.passes import Forward
from renorm.measure.propagated import Propagation, Site
from renorm.measure.quantity import told
from renorm.measure.sites import Sites, kind_of
from renorm.measure.surveying import Loss, unwrapped
from renorm.measure.user_calls import described, told_forward, told_loss

Statistics = Literal["batch", "running", "as it is"]
Similarity = Literal["penultimate", "everywhere"]


def propagation(
    model: nn.Module,
    batch: Any,
    loss: Loss | None = None,
    *,
    forward: Forward | None = None,
    statistics: Statistics = "batch",
    similarity: Similarity = "penultimate",
) -> Propagation:
    """Follow signals forward and gradients backward through a model, which stays as it is.

    Sites are the layers of weights (convolutions, nn.Linear), the normalizers, and the calls of
    torch's activation functions, whether by a module or not, in the order of the forward. A layer
    of weights shows what there is before the normalizer, an activation what there is after.

    Modes, parameters, buffers, gradients, hooks, attributes and the random states of Python,
    NumPy and torch are afterwards bit for bit as they were, after an exception or Ctrl-C too.
    Compiled and DDP models run uncompiled and alone. With a loss the gradients of all sites are in
    memory at once, as much again as their outputs.

    Args:
        model: in any mode.
        batch: a tensor; a tuple or list, of which the first element is the input; a dict of
            keyword arguments; or anything that ``forward`` takes. On the model's device.
        loss: ``(output, batch) -> a number``, that gradients are of; None for no gradients.
        forward: ``(model, batch) -> output``, for any other way to call the model.
        statistics: ``"batch"`` has normalizers in train mode and everything else in eval mode,
            so there is no dropout: what a fresh model does in training. ``"running"`` has all in
            eval mode; ``"as it is"`` leaves the modes alone.
        similarity: whether to compare examples at the penultimate activations alone, or
            ``"everywhere"``, at all normalizers and activations.

    Raises:
        ArgumentError: nothing in the model is a site, a layer has not met its first input or is on
            the meta device, the loss is no number that depends on the output, or an argument is
            outside the ranges above.

    Source: measures of Lubana, Dick and Tanaka 2021 (arXiv 2106.05956).

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
    >>> found = propagation(model, torch.randn(32, 8), lambda output, batch: output.sum())
    >>> [site.kind for site in found.sites]
    ['weights', 'norm', 'activation', 'weights']
    >>> found.sites[1].variance > 0.99, found.stable_rank < 32
    (True, True)
    """
    _check(loss, forward, statistics, similarity)
    inner = unwrapped(model)
    _check_ready(inner)
    sites = Sites(loss is not None, similarity == "everywhere")
    value, gradients = None, {}
    with (
        apart(inner),
        torch.inference_mode(False),
        nullcontext() if loss is None else torch.enable_grad(),
    ):
        if statistics != "as it is":
            _set_modes(inner, by_batch=statistics == "batch")
        with sites.watching(inner):
            output = told_forward(forward)(inner, batch)
        if not sites.found:
            raise ArgumentError(
                f"{type(inner).__name__} calls no convolution, nn.Linear, normalizer or activation "
                "function of torch whose values could be followed. Give a model that does, not a "
                "scripted one, and forward= if it is called in another way."
            )
        if loss is not None:
            value = told_loss(loss)(output, batch)
            gradients = _gradients(value, sites)
    alike = sites.similarity()
    found = [
        _completed(site, gradients.get(i), alike if i == sites.penultimate else None)
        for i, site in enumerate(sites.found)
    ]
    return Propagation(
        model=type(inner).__name__,
        statistics=statistics,
        examples=examples.count(batch),
        loss=None if value is None else told(float(value.detach())),
        sites=tuple(found),
        penultimate=sites.penultimate,
    )


def _gradients(loss: Any, sites: Sites) -> dict[int, tuple[float, int]]:
    """Sums of squares and counts of dL / d(output), by the place of the site."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise ArgumentError(
            f"loss(output, batch) is a tensor with a single value that depends on the output, got "
            f"{described(loss)}. Give one such as lambda output, batch: "
            "F.cross_entropy(output, batch[1])."
        )
    found = torch.autograd.grad(loss.sum(), list(sites.edges.values()), allow_unused=True)
    wide = torch.float32 if loss.device.type == "mps" else torch.float64
    return {
        place: (float(torch.linalg.vector_norm(gradient, dtype=wide)) ** 2, gradient.numel())
        for place, gradient in zip(sites.edges, found, strict=True)
        if gradient is not None
    }


def _completed(
    site: Site, gradient: tuple[float, int] | None, alike: tuple[float, float] | None
) -> Site:
    if alike is not None:
        site = replace(site, cosine=told(alike[0]), stable_rank=told(alike[1]))
    if gradient is not None:
        squares, count = gradient
        site = replace(
            site, gradient_norm=told(squares**0.5), gradient_square=told(squares / count)
        )
    return site


def _set_modes(model: nn.Module, by_batch: bool) -> None:
    """Normalizers in train mode if ``by_batch``, all else in eval mode; to be used in ``apart``."""
    modules = list(model.modules())
    trained = [m for m in modules if isinstance(m, _BatchNorm) and not is_frozen(m)]
    set_modes(model, trained, by_batch)
    for module in modules:
        if kind_of(module) == "norm" and not normalizes(module):
            module.training = by_batch


def _check(loss: Any, forward: Any, statistics: Any, similarity: Any) -> None:
    named: tuple[tuple[str, Callable | None, str], ...] = (
        ("loss", loss, "(output, batch) -> a number"),
        ("forward", forward, "(model, batch) -> output"),
    )
    for name, given, call in named:
        if given is not None and not callable(given):
            raise ArgumentError(f"{name} is called, {call}, got {given!r}. Give a function.")
    for name, given, allowed in (
        ("statistics", statistics, get_args(Statistics)),
        ("similarity", similarity, get_args(Similarity)),
    ):
        if given not in allowed:
            raise ArgumentError(f"{name} is {' or '.join(map(repr, allowed))}, got {given!r}.")


def _check_ready(model: nn.Module) -> None:
    for name, module in model.named_modules():
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if any(isinstance(t, UninitializedParameter | UninitializedBuffer) for t in tensors):
            raise ArgumentError(
                f"The layer {name!r} has not met its first input. Initialize the model by a "
                "forward first."
            )
        if any(t.is_meta for t in tensors):
            raise ArgumentError(
                f"The layer {name!r} is on the meta device and has no values. Give the model after "
                "to_empty() and its initialization."
            )
