"""Which normalization layer of a model is what, and at which limits."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils.parametrize import type_before_parametrizations

from renorm.limits import Limits
from renorm.nn import BatchRenorm, BatchRenormAct

_WIDTH = 100
_HEADER = ("layer", "type", "C", "step", "r_max", "d_max", "set", "statistics", "then")
_NUMBERS = _HEADER[2:6]


@dataclass(frozen=True)
class LayerSummary:
    """One normalization layer.

    Args:
        name: qualified, the first if the layer is shared; empty for the model itself.
        type: name of the class.
        channels: C; None for a lazy layer before its first input.
        step: statistics updates so far; None where they are not counted.
        r_max: bound of the scale correction at this step; 1 for batch norm.
        d_max: bound of the shift correction at this step; 0 for batch norm.
        limits: the schedule in words.
        momentum: update rate of the running statistics; None for the plain average.
        eps: added to variances.
        microbatch: examples that share statistics; None for the whole batch.
        frozen: whether it uses its running statistics in training too.
        statistics: what becomes of the running statistics: ``"updated"``, ``"frozen"``,
            ``"not updated"`` (``track_running_stats`` was switched off), ``"not initialized"``
            (lazy), ``"none"``, or for batch renorm ``"no reference: batch norm"``.
        sync: what processes share: ``"batch"`` or ``"running"`` statistics, or empty for none.
        then: what an activated layer does to the normalized values: ``"fused with ReLU"`` where
            it is one operation with the norm, else the classes of its modules in order.
    """

    name: str
    type: str
    channels: int | None
    step: int | None
    r_max: float
    d_max: float
    limits: str
    momentum: float | None
    eps: float
    microbatch: int | None
    frozen: bool
    statistics: str
    then: str = ""
    sync: str = ""

    def settings(self) -> str:
        """What is usually the same for many layers, in words: schedule, then the rest."""
        momentum = "plain average" if self.momentum is None else f"momentum {self.momentum:g}"
        groups = "" if self.microbatch is None else f", microbatch {self.microbatch}"
        shared = f", sync {self.sync}" if self.sync else ""
        return f"{self.limits}\n{momentum}, eps {self.eps:g}{groups}{shared}"


@dataclass(frozen=True)
class Summary:
    """The normalization layers of a model; ``str()`` is a table.

    Args:
        model: name of the model's class.
        rows: one for each layer, in the order of registration.
    """

    model: str
    rows: tuple[LayerSummary, ...]

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.model} has no batch norm or batch renorm layer."
        keys: dict[str, str] = {}
        for row in self.rows:
            keys.setdefault(row.settings(), f"{len(keys) + 1}")
        table = [_HEADER, *(_cells(row, keys[row.settings()]) for row in self.rows)]
        legend = [f"set {key}: " + text.replace("\n", "\n       ") for text, key in keys.items()]
        if not any(row.then for row in self.rows):
            table = [cells[:-1] for cells in table]
        return "\n".join([*_aligned(table), "", *legend])


def summary(model: nn.Module) -> Summary:
    """List every batch norm and batch renorm layer of a model; nothing is changed.

    A shared layer is listed once. Reads the step counts, which on an accelerator waits for it.

    Args:
        model: any module.

    Returns:
        The rows, and by ``print`` a table with one line a layer.

    >>> from renorm import BatchRenorm1d, limits
    >>> print(summary(nn.Sequential(nn.BatchNorm1d(4), BatchRenorm1d(8, limits=limits.over(100)))))
    layer  type           C  step  r_max  d_max  set  statistics
    0      BatchNorm1d    4     0      1      0  1    updated
    1      BatchRenorm1d  8     0      1      0  2    updated
    <BLANKLINE>
    set 1: batch norm
           momentum 0.1, eps 1e-05
    set 2: r_max 1 -> 3 over steps 5 to 40, d_max 0 -> 5 over steps 5 to 25
           momentum 0.01, eps 1e-05
    """
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
    return Summary(type(model).__name__, tuple(_row(name, layer) for name, layer in norms))


def _row(name: str, layer: _BatchNorm) -> LayerSummary:
    if isinstance(layer, BatchRenorm):
        layer._settle()
    count = layer.num_batches_tracked
    step = None if count is None or count.is_meta else int(count)
    r_max, d_max, limits, microbatch, frozen = 1.0, 0.0, "batch norm", None, False
    if isinstance(layer, BatchRenorm):
        limits, microbatch, frozen = _words(layer), layer.microbatch, layer.frozen
        if layer.running_mean is not None:
            r_max, d_max = _limits_now(layer, step)
    return LayerSummary(
        name,
        type_before_parametrizations(layer).__name__,
        None if _lazy(layer) else layer.num_features,
        step,
        r_max,
        d_max,
        limits,
        layer.momentum,
        layer.eps,
        microbatch,
        frozen,
        _statistics(layer, frozen),
        _then(layer),
        _sync(layer),
    )


def _limits_now(layer: BatchRenorm, step: int | None) -> tuple[float, float]:
    # a schedule of the user's may take tensors alone, which is what the layer gives it
    count = layer.num_batches_tracked
    on_host = isinstance(layer.limits, Limits) or step is None or count is None
    r_max, d_max = layer.limits((step or 0) if on_host else count)
    return float(r_max), float(d_max)


def _words(layer: BatchRenorm) -> str:
    if isinstance(layer.limits, Limits):
        return str(layer.limits)
    return f"limits by {getattr(layer.limits, '__qualname__', repr(layer.limits))}"


def _lazy(layer: _BatchNorm) -> bool:
    tensors = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return any(isinstance(t, UninitializedParameter | UninitializedBuffer) for t in tensors)


def _statistics(layer: _BatchNorm, frozen: bool) -> str:
    if _lazy(layer):
        return "not initialized"
    if layer.running_mean is None:
        return "no reference: batch norm" if isinstance(layer, BatchRenorm) else "none"
    if frozen:
        return "frozen"
    return "updated" if layer.track_running_stats else "not updated"


def _sync(layer: _BatchNorm) -> str:
    if isinstance(layer, nn.SyncBatchNorm):
        return "batch"
    return layer.sync or "" if isinstance(layer, BatchRenorm) else ""


def _then(layer: _BatchNorm) -> str:
    if not isinstance(layer, BatchRenormAct):
        return ""
    if layer.fused:
        return "fused with ReLU"
    return ", ".join(
        type(m).__name__ for m in (layer.drop, layer.act) if type(m) is not nn.Identity
    )


def _cells(row: LayerSummary, key: str) -> tuple[str, ...]:
    channels, step = ("-" if n is None else str(n) for n in (row.channels, row.step))
    limits = (f"{row.r_max:.3g}", f"{row.d_max:.3g}")
    return (row.name or "(model)", row.type, channels, step, *limits, key, row.statistics, row.then)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    others = sum(widths[1:]) + 2 * (len(widths) - 1)
    widths[0] = min(widths[0], max(_WIDTH - others, 20))
    return [_line([_short(row[0], widths[0]), *row[1:]], widths) for row in table]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    # the last title has no cells where no layer activates
    padded = [
        cell.rjust(width) if title in _NUMBERS else cell.ljust(width)
        for cell, width, title in zip(cells, widths, _HEADER, strict=False)
    ]
    return "  ".join(padded).rstrip()


def _short(name: str, width: int) -> str:
    """The name with its middle left out: its end tells layers apart, its start where they are."""
    if len(name) <= width:
        return name
    start = (width - 2) // 3
    return f"{name[:start]}..{name[len(name) - (width - 2 - start) :]}"
