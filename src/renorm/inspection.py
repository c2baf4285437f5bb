"""Which normalization layer of a model is what, and at which limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils.parametrize import type_before_parametrizations

from renorm.limits import Limits
from renorm.nn import (
    BatchRenorm,
    BatchRenormAct,
    CrossIterationBatchNorm,
    CrossIterationBatchNormAct2d,
)

_WIDTH = 100
_ALWAYS = ("layer", "type", "C", "step", "r_max", "d_max", "set", "statistics")
_IF_ANY = ("then", "source", "compensation", "history")
_NUMBERS = (*_ALWAYS[2:6], "history")

_COMPENSATION = {
    "none": "none",
    "derivative": "first order",
    "outputs": "first order",
    "covariance": "exact",
    "patches": "exact",
}


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
        source: the layer whose output a cross-iteration layer normalizes.
        compensation: how such a layer brings the variance of earlier iterations to the weights of
            now: ``"first order"``, ``"exact"``, with the number of positions if they are sampled,
            or ``"none"``.
        history: the bytes that such a layer remembers.
        then: what an activated layer does to the normalized values: ``"fused with ReLU"`` where
            it is one operation with the norm, else the classes of its modules in order.
        backward: ``"moving"`` where backward passes remove moving averages, or empty.
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
    source: str = ""
    compensation: str = ""
    history: int = 0
    backward: str = ""

    def settings(self) -> str:
        """What is usually the same for many layers, in words: schedule, then the rest."""
        momentum = "plain average" if self.momentum is None else f"momentum {self.momentum:g}"
        groups = "" if self.microbatch is None else f", microbatch {self.microbatch}"
        shared = f", sync {self.sync}" if self.sync else ""
        backward = f", backward {self.backward}" if self.backward else ""
        return f"{self.limits}\n{momentum}, eps {self.eps:g}{groups}{shared}{backward}"


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
        table = [_cells(row, keys[row.settings()]) for row in self.rows]
        titles = [*_ALWAYS, *(title for title in _IF_ANY if any(row[title] for row in table))]
        legend = [f"set {key}: " + text.replace("\n", "\n       ") for text, key in keys.items()]
        history = sum(row.history for row in self.rows)
        if history:
            legend.append(f"history: {_mebibytes(history)} MiB in all")
        cells = [titles, *([row[title] for title in titles] for row in table)]
        return "\n".join([*_aligned(cells), "", *legend])


def summary(model: nn.Module) -> Summary:
    """List every batch norm layer of a model, torch's and ours; nothing is changed.

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
    names = {module: name for name, module in model.named_modules()}
    norms = [(name, m) for m, name in names.items() if isinstance(m, _BatchNorm)]
    return Summary(type(model).__name__, tuple(_row(name, layer, names) for name, layer in norms))


def _row(name: str, layer: _BatchNorm, names: Mapping[nn.Module, str]) -> LayerSummary:
    if isinstance(layer, BatchRenorm):
        layer._settle()
    count = layer.num_batches_tracked
    step = None if count is None or count.is_meta else int(count)
    r_max, d_max, limits, microbatch, frozen = 1.0, 0.0, "batch norm", None, False
    if isinstance(layer, BatchRenorm):
        limits, microbatch, frozen = _words(layer), layer.microbatch, layer.frozen
        if layer.running_mean is not None:
            r_max, d_max = _limits_now(layer, step)
    elif isinstance(layer, CrossIterationBatchNorm):
        limits, frozen = _window(layer), layer.frozen
        if layer.limits is not None and layer.running_mean is not None:
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
        *_remembered(layer, names),
        backward="moving" if isinstance(layer, BatchRenorm) and layer.backward == "moving" else "",
    )


def _remembered(layer: _BatchNorm, names: Mapping[nn.Module, str]) -> tuple[str, str, int]:
    """Source, compensation and bytes of the history."""
    if not isinstance(layer, CrossIterationBatchNorm) or layer.window == 1:
        return "", "", 0
    source = layer.source
    if source is None and layer.compensation != "none":
        return "not attached", "", 0
    name = "" if source is None else names.get(source, "outside the model")
    words = _COMPENSATION[layer._history.method]
    if layer.sample is not None:
        words += f", {layer.sample} sampled"
    return name, words, layer.history_bytes()


def _limits_now(layer: BatchRenorm | CrossIterationBatchNorm, step: int | None) -> Any:
    # a schedule of the user's may take tensors alone, which is what the layer gives it
    limits, count = layer.limits, layer.num_batches_tracked
    assert limits is not None
    on_host = isinstance(limits, Limits) or step is None or count is None
    r_max, d_max = limits((step or 0) if on_host else count)
    return float(r_max), float(d_max)


def _words(layer: BatchRenorm | CrossIterationBatchNorm) -> str:
    if isinstance(layer.limits, Limits):
        return str(layer.limits)
    return f"limits by {getattr(layer.limits, '__qualname__', repr(layer.limits))}"


def _window(layer: CrossIterationBatchNorm) -> str:
    words = f"batch norm over {layer.window} iterations"
    if layer.burn_in:
        words += f", of one until step {layer.burn_in}"
    if layer.limits is not None:
        words += f", then {_words(layer)}"
    return words if layer.follow == "window" else f"{words}, running statistics of the batch"


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
    if not isinstance(layer, BatchRenormAct | CrossIterationBatchNormAct2d):
        return ""
    if isinstance(layer, BatchRenormAct) and layer.fused:
        return "fused with ReLU"
    return ", ".join(
        type(m).__name__ for m in (layer.drop, layer.act) if type(m) is not nn.Identity
    )


def _cells(row: LayerSummary, key: str) -> dict[str, str]:
    channels, step = ("-" if n is None else str(n) for n in (row.channels, row.step))
    return {
        "layer": row.name or "(model)",
        "type": row.type,
        "C": channels,
        "step": step,
        "r_max": f"{row.r_max:.3g}",
        "d_max": f"{row.d_max:.3g}",
        "set": key,
        "statistics": row.statistics,
        "then": row.then,
        "source": row.source,
        "compensation": row.compensation,
        "history": f"{_mebibytes(row.history)} MiB" if row.history else "",
    }


def _mebibytes(n: int) -> str:
    return f"{n / 2**20:.2f}"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    titles = table[0]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    others = sum(widths[1:]) + 2 * (len(widths) - 1)
    widths[0] = min(widths[0], max(_WIDTH - others, 20))
    return [_line([_short(row[0], widths[0]), *row[1:]], widths, titles) for row in table]


def _line(cells: Sequence[str], widths: Sequence[int], titles: Sequence[str]) -> str:
    padded = [
        cell.rjust(width) if title in _NUMBERS else cell.ljust(width)
        for cell, width, title in zip(cells, widths, titles, strict=True)
    ]
    return "  ".join(padded).rstrip()


def _short(name: str, width: int) -> str:
    """The name with its middle left out: its end tells layers apart, its start where they are."""
    if len(name) <= width:
        return name
    start = (width - 2) // 3
    return f"{name[:start]}..{name[len(name) - (width - 2 - start) :]}"
