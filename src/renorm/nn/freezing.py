"""Frozen statistics that survive ``model.train()``."""

from typing import TypeVar

from torch import nn

from renorm.errors import ArgumentError
from renorm.nn.batch_renorm import BatchRenorm
from renorm.nn.cross_iteration import CrossIterationBatchNorm

M = TypeVar("M", bound=nn.Module)


def freeze(model: M) -> M:
    """Have every layer of ours use its running statistics, and leave them, in training too.

    Weight and bias go on learning unless their ``requires_grad`` is switched off. The mark is
    configuration, not state: it is not in the state_dict.

    Args:
        model: changed in place.

    Returns:
        The model.

    Raises:
        ArgumentError: there is no batch renorm or cross-iteration layer, or one has no running
            statistics.

    >>> model = freeze(nn.Sequential(nn.Linear(3, 4), BatchRenorm(4))).train()
    >>> model[1].frozen
    True
    """
    return _set_frozen(model, True)


def unfreeze(model: M) -> M:
    """Undo ``freeze``: training forwards use and update statistics again.

    >>> unfreeze(freeze(nn.Sequential(BatchRenorm(4))))[0].frozen
    False
    """
    return _set_frozen(model, False)


def _set_frozen(model: M, frozen: bool) -> M:
    ours = (BatchRenorm, CrossIterationBatchNorm)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, ours)}
    if not layers:
        raise ArgumentError(
            f"{type(model).__name__} has no batch renorm or cross-iteration layer, so there is "
            "nothing to freeze. "
            "Convert its batch norm layers first: renorm.convert(model)."
        )
    without = [name for name, layer in layers.items() if layer.running_mean is None]
    if frozen and without:
        raise ArgumentError(
            f"These layers keep no running statistics and cannot be frozen: {', '.join(without)}. "
            "Build them with track_running_stats=True."
        )
    for layer in layers.values():
        layer.frozen = frozen
    return model
