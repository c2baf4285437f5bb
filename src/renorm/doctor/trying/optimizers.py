"""A fresh optimizer for a copy of a model."""

import inspect
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from renorm.errors import ArgumentError

# The length of a gradient's step over that of the weights: half of LARS's (You et al. 2017, arXiv
# 1708.03888, section 5), since two copies that drift apart by chance tell nothing of a fix.
TRUST = 0.0005
MOST = 0.003
MOMENTUM = 0.9


class Make(Protocol):
    """Makes a fresh optimizer of the parameters of a model."""

    def __call__(self, model: nn.Module, /) -> Optimizer:
        """The optimizer."""
        ...


def maker(given: Any, original: nn.Module) -> Make:
    """What makes the optimizers that the user asks for.

    Args:
        given: a callable ``parameters -> Optimizer``, or an optimizer of the original.
        original: the model that the copies are of.

    Raises:
        ArgumentError: it is neither, or an optimizer of something else, or one that calls the
            model itself.
    """
    if isinstance(given, Optimizer):
        _check_step(given)
        return _like(given, original)
    if callable(given):
        return _by_callable(given)
    raise ArgumentError(
        "optimizer is a torch optimizer of the model, or a callable that makes one of a list of "
        f"parameters, got {given!r}. For example: lambda p: torch.optim.SGD(p, lr=0.01)."
    )


def default(lr: float) -> Make:
    """SGD with momentum 0.9, which has neither state nor settings to get wrong."""
    return _by_callable(lambda parameters: SGD(parameters, lr=lr, momentum=MOMENTUM))


def suited_rate(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> float:
    """The learning rate at which a gradient moves the weights by 0.0005 of their length.

    ``TRUST * |w| / |g|``, over all trainable parameters, with the median of |g|; at most
    ``MOST``, which is also for gradients that are zero or cannot be had.

    Args:
        model: whose gradients are computed, in place.
        losses: of some batches.
    """
    parameters = trainable(model)
    norms = []
    for loss in losses:
        try:
            gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
        except (RuntimeError, ValueError):  # the trials will tell, each for itself
            continue
        norms.append(_length([g for g in gradients if g is not None]))
    norms = [norm for norm in norms if 0 < norm < float("inf")]
    if not norms:
        return MOST
    suited = TRUST * _length(parameters) / statistics.median(norms)
    return min(MOST, float(f"{suited:.2g}")) or MOST


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that ask for a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _by_callable(make: Callable[[list[nn.Parameter]], Any]) -> Make:
    def fresh(model: nn.Module, /) -> Optimizer:
        made = make(trainable(model))
        if not isinstance(made, Optimizer):
            raise ArgumentError(
                "optimizer has to make a torch optimizer of a list of parameters, and made "
                f"{made!r}."
            )
        _check_step(made)
        return made

    return fresh


def _like(given: Optimizer, original: nn.Module) -> Make:
    names = {parameter: name for name, parameter in original.named_parameters()}
    groups = []
    for group in given.param_groups:
        strangers = sum(parameter not in names for parameter in group["params"])
        if strangers:
            raise ArgumentError(
                f"optimizer has {strangers} parameters that {type(original).__name__} has not. "
                "Give an optimizer of this very model, or a callable that makes one."
            )
        groups.append({**group, "params": [names[parameter] for parameter in group["params"]]})
    accepted = inspect.signature(type(given).__init__).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    defaults = {k: v for k, v in given.defaults.items() if takes_all or k in accepted}

    def fresh(model: nn.Module, /) -> Optimizer:
        own = dict(model.named_parameters(remove_duplicate=False))
        mapped = [
            {**_copied(group), "params": [own[name] for name in group["params"] if name in own]}
            for group in groups
        ]
        return type(given)([group for group in mapped if group["params"]], **_copied(defaults))

    return fresh


def _copied(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with learning rates that are tensors not shared with the user's."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in settings.items()}


def _check_step(optimizer: Optimizer) -> None:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ArgumentError(
            f"{type(optimizer).__name__} calls the model several times a step, which cannot be "
            "tried. Give another optimizer, or None for SGD."
        )


def _length(tensors: Sequence[Tensor]) -> float:
    return float(sum(float(t.detach().double().square().sum()) for t in tensors)) ** 0.5
