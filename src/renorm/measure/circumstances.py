"""What else there is to know of a model, from its surroundings: nothing is run or changed."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from renorm import collectives
from renorm.distributed import settle
from renorm.errors import ArgumentError
from renorm.inspection import summary
from renorm.limits import Limits
from renorm.measure.layers import eps_of, normalizes, statistics_of
from renorm.measure.quantity import told
from renorm.measure.records import MODEL, Converted, LimitsAhead, RankSpread
from renorm.nn import BatchRenorm, CrossIterationBatchNorm


def limits_ahead(model: nn.Module, steps: int) -> tuple[LimitsAhead, ...]:
    """Where the limits of each layer of batch renorm will be after so many more updates.

    Args:
        model: whose layers are asked; other normalization layers have no limits, and no record.
        steps: updates of the statistics that the run still does, at least 0.

    Raises:
        ArgumentError: steps is no such number.

    >>> from renorm import BatchRenorm1d, limits
    >>> (found,) = limits_ahead(BatchRenorm1d(3, limits=limits.over(1_000)), 400)
    >>> found.r_max, found.d_max
    (3.0, 5.0)
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise ArgumentError(
            f"steps is the number of updates that the run still does, 0 or more, got {steps!r}."
        )
    counts = {row.name: row.step for row in summary(model).rows}
    found = []
    for name, layer in model.named_modules():
        ours = isinstance(layer, BatchRenorm | CrossIterationBatchNorm)
        if not ours or layer.limits is None or layer.running_mean is None:
            continue
        r_max, d_max = _limits_at(layer, (counts.get(name) or 0) + steps)
        found.append(LimitsAhead(name or MODEL, steps, r_max, d_max))
    return tuple(found)


def rank_spread(model: nn.Module) -> tuple[RankSpread, ...]:
    """How far running means and deviations of the processes of a run lie apart, layer by layer.

    All processes of the default group have to ask, with the same model; each gets the same
    figures. Of all layers together, with sigma and mean those of the processes' statistics pooled::

        mean = E_p[mean_p]      sigma^2 = E_p[var_p + eps + (mean_p - mean)^2]

    Returns:
        A record for each layer with running statistics; none where torch.distributed is not
        initialized, or this process is alone.

    Raises:
        ArgumentError: the processes have other layers.
        CollectiveError: the exchange failed.
    """
    settle(model)
    layers = {
        name or MODEL: (pair[0], pair[1], eps_of(layer))
        for name, layer in model.named_modules()
        if normalizes(layer) and (pair := statistics_of(layer)) is not None
    }
    if not layers or not collectives.together():
        return ()
    collectives.agree({name: f"{len(mean)} channels" for name, (mean, *_) in layers.items()}, None)
    own = torch.cat([_columns(*state) for state in layers.values()], 1)
    everyone = collectives.gathered(own).cpu()
    widths = [len(mean) for mean, *_ in layers.values()]
    parts = zip(layers, everyone.split(widths, dim=2), strict=True)
    return tuple(_spread(name, part[:, 0], part[:, 1]) for name, part in parts)


def converted(before: nn.Module, after: nn.Module) -> tuple[Converted, ...]:
    """The normalization layers that have another class than before, or are gone.

    Args:
        before: the model, or a copy of it, before a conversion.
        after: what came out; layers are told by their names.

    >>> from renorm import convert
    >>> one, other = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3))
    >>> (found,) = converted(one, convert(other))
    >>> found.before, found.after, found.was_renorm, found.is_renorm
    ('BatchNorm1d', 'BatchRenorm1d', False, True)
    """
    new = dict(after.named_modules(remove_duplicate=False))
    found = []
    for name, layer in before.named_modules():
        if not normalizes(layer):
            continue
        other = new.get(name)
        was = type_before_parametrizations(layer).__name__
        now = "" if other is None else type_before_parametrizations(other).__name__
        if isinstance(other, nn.Identity):
            now = ""
        if was != now:
            found.append(Converted(name or MODEL, was, now, _is_ours(layer), _is_ours(other)))
    return tuple(found)


def _is_ours(module: nn.Module | None) -> bool:
    return isinstance(module, BatchRenorm | CrossIterationBatchNorm)


def _limits_at(layer: BatchRenorm | CrossIterationBatchNorm, step: int) -> tuple[float, float]:
    limits = layer.limits
    assert limits is not None
    # a schedule of the user's may take tensors alone, which is what the layer gives it
    r_max, d_max = limits(step if isinstance(limits, Limits) else torch.tensor(step))
    return float(r_max), float(d_max)


def _columns(mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """(2, C): mean and variance with eps, in float64."""
    return torch.stack([mean.detach().double(), var.detach().double() + eps])


def _spread(name: str, mean: Tensor, var: Tensor) -> RankSpread:
    """Of means and variances (P, C) of P processes; those of all pool them with equal weights."""
    middle = mean.mean(0)
    pooled = (var + (mean - middle).square()).mean(0)
    shift = ((mean - middle).abs() / pooled.sqrt()).max()
    log_ratio = (0.5 * (var / pooled).log()).abs().max()
    return RankSpread(name, len(mean), told(float(shift)), told(float(log_ratio)))
