"""What else there is to know of a model, from its surroundings: nothing is run or changed."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import type_before_parametrizations

from renorm import collectives
from renorm.errors import ArgumentError
from renorm.inspection import summary
from renorm.limits import Limits
from renorm.measure.layers import eps_of, statistics_of
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
    figures. Two sums over the group for all layers together, and a maximum.

    Returns:
        A record for each layer with running statistics; none where torch.distributed is not
        initialized, or this process is alone.

    Raises:
        ArgumentError: the processes have other layers.
        CollectiveError: the exchange failed.
    """
    return collectives_spread(model)


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
        if not isinstance(layer, _BatchNorm):
            continue
        other = new.get(name)
        was, now = _class(layer), "" if other is None else _class(other)
        kept = isinstance(other, nn.Module) and statistics_like(other)
        if was != now:
            ours = BatchRenorm | CrossIterationBatchNorm
            found.append(
                Converted(
                    name or MODEL,
                    was,
                    now if kept else "",
                    isinstance(layer, ours),
                    isinstance(other, ours),
                )
            )
    return tuple(found)
