"""One call of a normalization layer: the statistics that it is about to normalize by.

What is taken stays on the layer's device until all of a step is fetched at once: nothing in the
forward waits for the device.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.kernels import Call, composite, window
from renorm.kernels.exchange import Joint
from renorm.nn import BatchRenorm, CrossIterationBatchNorm
from renorm.nn.deferral import is_ready
from renorm.nn.recomputation import in_backward


class Statistics(NamedTuple):
    """What a call is normalized by, and against; tensors, or the arrays that they are fetched to.

    G is the number of groups of examples with statistics of their own.
    """

    values: Any  # (G,) per channel
    mean: Any  # (G, C) of the input
    var: Any  # (G, C), biased
    used_mean: Any  # (G, C), what the layer subtracts: of a window of iterations, or ``mean``
    used_var: Any  # (G, C)
    running_mean: Any  # (C,), before this call
    running_var: Any  # (C,)
    r_max: Any  # (), infinite where the layer has no limits
    d_max: Any  # ()


class Seen(NamedTuple):
    """A call.

    Args:
        statistics: of the call.
        eps: of the layer.
        limited: whether the layer corrects by r and d, within limits.
    """

    statistics: Statistics
    eps: float
    limited: bool


def look(layer: _BatchNorm, x: Any, mask: Any) -> Seen | None:
    """What a call of the layer with this input is about to do; the layer stays as it is.

    Returns:
        None for a call that does not normalize by its batch against running statistics, is a
        repetition by activation checkpointing, happens in a graph or under a transform of
        torch.func, where nothing can be taken out, or is about to be refused.
    """
    if not _trains(layer) or _is_out_of_reach() or not _fits(layer, x, mask):
        return None
    with torch.no_grad(), _full_precision(x):
        return _look(layer, x.detach(), mask)


def joint(seen: Seen, moments: Joint) -> Seen:
    """The call with the moments of the batches of all processes for those of this one."""
    old = seen.statistics
    dtype = old.mean.dtype
    values = moments.values.detach().to(dtype).view(1)
    mean, var = (t.detach().to(dtype).unsqueeze(0) for t in (moments.mean, moments.var))
    new = old._replace(values=values, mean=mean, var=var, used_mean=mean, used_var=var)
    return seen._replace(statistics=new)


def _look(layer: _BatchNorm, x: Tensor, mask: Tensor | None) -> Seen:
    values, mean, var = moments(layer, x, mask)
    used_mean, used_var = mean, var
    if isinstance(layer, CrossIterationBatchNorm):
        used_mean, used_var = (t.unsqueeze(0) for t in _windowed(layer, x, mean[0], var[0]))
    bounds, limited = _limits(layer)
    statistics = Statistics(
        values,
        mean,
        var,
        used_mean.to(mean.dtype),
        used_var.to(mean.dtype),
        *_running(layer, mean.dtype),
        *(t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64) for t in bounds),
    )
    return Seen(statistics, layer.eps, limited)


def fetch(calls: Sequence[Seen]) -> list[Seen]:
    """The same calls with arrays for tensors, by one transfer for each device and dtype."""
    tensors = [t for call in calls for t in call.statistics]
    arrays: dict[int, NDArray] = {i: t.numpy() for i, t in enumerate(tensors) if _on_host(t)}
    for kind in dict.fromkeys((t.device, t.dtype) for t in tensors if not _on_host(t)):
        places = [i for i, t in enumerate(tensors) if (t.device, t.dtype) == kind]
        sizes = [tensors[i].numel() for i in places]
        flat = torch.cat([tensors[i].reshape(-1) for i in places]).cpu().numpy()
        for i, part in zip(places, np.split(flat, np.cumsum(sizes)[:-1]), strict=True):
            arrays[i] = part.reshape(tensors[i].shape)
    width = len(Statistics._fields)
    return [
        call._replace(statistics=Statistics(*(arrays[width * i + j] for j in range(width))))
        for i, call in enumerate(calls)
    ]


def _on_host(t: Tensor) -> bool:
    return t.is_cpu


def _trains(layer: _BatchNorm) -> bool:
    if isinstance(layer, BatchRenorm | CrossIterationBatchNorm) and layer.frozen:
        return False
    return layer.training and is_ready(layer)


def _is_out_of_reach() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or in_backward()
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


def _fits(layer: _BatchNorm, x: Any, mask: Any) -> bool:
    if not isinstance(x, Tensor) or x.is_meta or not x.is_floating_point() or x.numel() == 0:
        return False
    if x.dim() < 2 or x.shape[1] != layer.num_features:
        return False
    if mask is None:
        return True
    return (
        isinstance(mask, Tensor)
        and mask.dtype == torch.bool
        and mask.shape == (x.shape[0], *x.shape[2:])
    )


def _full_precision(x: Tensor) -> Any:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def moments(layer: _BatchNorm, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Values (G,), mean and biased variance (G, C) of the layer's own groups of examples."""
    size = len(x)
    if isinstance(layer, BatchRenorm) and layer.microbatch is not None:
        size = layer.microbatch
    if mask is None and (x.is_cpu or size >= len(x)):  # a launch a group is nothing on the CPU
        parts = x.split(size)
        mean, var = (torch.stack(each) for each in zip(*map(window.moments, parts), strict=True))
        # on the host, since a copy to the device would wait for it
        values = torch.tensor([part.numel() // x.shape[1] for part in parts], dtype=mean.dtype)
        return values, mean, var
    call = Call(x, None, None, None, None, 1.0, 0.0, 0.0, layer.eps, mask, size)
    return composite.moments(call)


def _windowed(
    layer: CrossIterationBatchNorm, x: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of the window with this iteration in it."""
    lags = None
    if layer._borrows():
        history = layer._history
        if layer.compensation != "none":  # the source has told of its forward already
            lags = None if layer._seen is None else layer._seen.lags
        elif history.tensors and not history.empty:
            lags = history.kept()
    if lags is not None and (lags[0].dtype, lags[0].device) != (mean.dtype, mean.device):
        lags = None  # the layer forgets what was in another dtype
    used, _ = layer._combined((mean, var), lags, x)
    return used.mean, used.var


def _running(layer: _BatchNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Copies of the running statistics, which this call is about to move."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    return mean.detach().to(dtype, copy=True), var.detach().to(dtype, copy=True)


def _limits(layer: _BatchNorm) -> tuple[tuple[Any, Any], bool]:
    """``(r_max, d_max)`` now, and whether there are limits."""
    if not isinstance(layer, BatchRenorm | CrossIterationBatchNorm) or layer.limits is None:
        return (torch.inf, torch.inf), False
    count: Any = layer.num_batches_tracked
    return layer.limits(0 if count is None else int(count) if count.is_cpu else count), True
