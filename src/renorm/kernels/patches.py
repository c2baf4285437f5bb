"""What the filters of a linear layer or a convolution see of its input, and moments of that.

Patches are (G, m, K): G groups, m positions (examples times output positions, in this order), K
values that a filter sees there. With weights (C, K) the layer is ``y = p W^T + b``. All of them
are built only where nothing else would be cheaper.
"""

from __future__ import annotations

from functools import lru_cache, reduce
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from renorm.kernels.cpu import lags as native

if TYPE_CHECKING:  # it is imported where it is used: importing this package stays quick
    import numpy as np

# up to so many positions one product of patches is faster than the native weight gradient: on 2
# cores 1.4 against 3.8 ms for 64 of them, K = 4,608 and C = 512, but 1.5 against 1.2 for 256
_FEW = 64
_KEPT = 2**16  # entries of a table that is kept for images of a size, and covers all at once
_AT_ONCE = 2**22  # values of patches in memory, where all are needed


class Geometry(NamedTuple):
    """How a convolution of any rank reads its input; a linear layer has no kernel dimensions."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()  # before and behind, in each dimension
    mode: str = "zeros"
    groups: int = 1

    @property
    def reads_zeros(self) -> bool:
        """Whether zeros beyond the borders are part of the patches."""
        return self.mode == "zeros" and any(before or behind for before, behind in self.padding)


class _Dimension(NamedTuple):
    """How a convolution reads its input in one dimension."""

    size: int
    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]
    mode: str

    @property
    def out(self) -> int:
        """The size of the output."""
        extent = (self.kernel - 1) * self.dilation + 1
        return (self.size + sum(self.padding) - extent) // self.stride + 1

    def reads(self, outputs: np.ndarray) -> np.ndarray:
        """Which inputs some outputs read: (len(outputs), kernel), -1 for a zero."""
        import numpy as np

        last = self.size - 1
        i = outputs[:, None] * self.stride + np.arange(self.kernel) * self.dilation
        i = i - self.padding[0]
        if self.mode == "replicate":
            return i.clip(0, last)
        if self.mode == "circular":
            return i % self.size
        if self.mode == "reflect":
            return last - abs(last - abs(i))
        return np.where((i < 0) | (i > last), -1, i)

    def shares(self) -> np.ndarray:
        """How large a part of the outputs reads each input at each place: (kernel, size)."""
        import numpy as np

        read = self.reads(np.arange(self.out))
        times = [np.bincount(column[column >= 0], minlength=self.size) for column in read.T]
        return np.stack(times) / self.out

    def means(self, values: Tensor) -> Tensor:
        """What ``values @ shares.T`` is, (..., size) to (..., kernel), without so large a table."""
        flat = values.reshape(1, -1, self.size)
        if any(self.padding):
            flat = F.pad(flat, self.padding, _torch_mode(self.mode))
        width = self.stride * (self.out - 1) + 1
        starts = range(0, self.kernel * self.dilation, self.dilation)
        columns = [flat[0, :, i : i + width : self.stride].mean(1) for i in starts]
        return torch.stack(columns, 1).view(*values.shape[:-1], self.kernel)


class _Plan:
    """What follows from the size of an image and how it is read: k places, S inputs."""

    def __init__(self, spatial: tuple[int, ...], g: Geometry) -> None:
        import numpy as np

        each = zip(spatial, g.kernel, g.stride, g.dilation, g.padding, strict=True)
        self.dimensions = [_Dimension(*settings, g.mode) for settings in each]
        self.inputs = prod(spatial)
        self.out = [d.out for d in self.dimensions]
        self.outputs, self.places = prod(self.out), prod(g.kernel)
        self.one_product = self.inputs * self.places <= _KEPT
        self._shares: dict[Any, list[Tensor | None]] = {}
        self._reads = None
        if self.outputs * self.places <= _KEPT:
            self._reads = self._composed(np.arange(self.outputs))

    def shares(self, device: torch.device, dtype: torch.dtype) -> list[Tensor | None]:
        """The shares (k, S) of all dimensions in one, or of each; None for a large one."""
        import numpy as np

        found = self._shares.get((device, dtype))
        if found is None:
            small = [d.size * d.kernel <= _KEPT for d in self.dimensions]
            each = [
                d.shares() if few else None for d, few in zip(self.dimensions, small, strict=True)
            ]
            if self.one_product:
                each = [reduce(np.kron, each)]  # type: ignore[arg-type]
            found = [None if s is None else torch.from_numpy(s).to(device, dtype) for s in each]
            self._shares[device, dtype] = found
        return found

    def reads(self, outputs: np.ndarray) -> np.ndarray:
        """Which inputs some outputs read: (len(outputs), k), -1 for a zero."""
        return self._composed(outputs) if self._reads is None else self._reads[outputs]

    def _composed(self, outputs: np.ndarray) -> np.ndarray:
        import numpy as np

        index = np.zeros((len(outputs), 1), np.int64)
        for o, d in zip(np.unravel_index(outputs, self.out), self.dimensions, strict=True):
            read, before = d.reads(o)[:, None], index[..., None]
            both = np.where((read < 0) | (before < 0), -1, before * d.size + read)
            index = both.reshape(len(outputs), -1)
        return index


@lru_cache(maxsize=64)  # of at most some 800 KiB each
def _plan(spatial: tuple[int, ...], g: Geometry) -> _Plan:
    return _Plan(spatial, g)


def mean_patch(x: Tensor, g: Geometry, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The mean (G, K) over all positions, by sums over boxes: no patch is built.

    Args:
        x: input of the layer, (N, K) or (N, C_in, *spatial), N > 0.
        g: how the layer reads it.
        dtype: of the result and the sums.
        out: room for the result, whose rows may lie apart; None for new room.
    """
    if not g.kernel:
        mean = x.mean(0, dtype=dtype).unsqueeze(0)
        return mean if out is None else out.copy_(mean)
    plan = _plan(tuple(x.shape[2:]), g)
    shares = plan.shares(x.device, dtype)
    whole = shares[0] if plan.one_product else None
    if whole is not None and native.usable(whole) and native.readable(dtype, x):
        values = x.shape[1] // g.groups * plan.places
        out = whole.new_empty(g.groups, values) if out is None else out
        native.write_mean(x, whole, g.groups, out)
        return out
    mean = x.mean(0, dtype=dtype)
    if whole is not None:
        mean = mean.flatten(1) @ whole.t()
    else:
        for dimension, each in zip(plan.dimensions, shares, strict=True):
            # the first spatial dimension that is left becomes the last one of the patch
            mean = mean.movedim(1, -1)
            mean = dimension.means(mean) if each is None else mean @ each.t()
    mean = mean.reshape(g.groups, -1)
    return mean if out is None else out.copy_(mean)


def patches(x: Tensor, g: Geometry, positions: np.ndarray | None = None) -> Tensor:
    """The patches (G, m, K), or of some positions in the order given."""
    if not g.kernel:
        return (x if positions is None else x[torch.from_numpy(positions)]).unsqueeze(0)
    example, _, read = reading(x, g, positions)
    if native.usable(x) and native.readable(x.dtype, x):
        return native.gather(x, g.groups, example, read)
    inside = read >= 0
    found = x.flatten(2)[_on(x, example[:, None]), :, _on(x, read * inside)]  # (m, k, C_in)
    if g.reads_zeros:
        found.masked_fill_(_on(x, ~inside).unsqueeze(2), 0)
    split = found.view(len(example), -1, g.groups, x.shape[1] // g.groups)
    return split.permute(2, 0, 3, 1).reshape(g.groups, len(example), -1)


def reading(
    x: Tensor, g: Geometry, positions: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The example and the output place (m,) of positions, and the inputs (m, k) read there."""
    import numpy as np

    plan = _plan(tuple(x.shape[2:]), g)
    if positions is None:
        positions = np.arange(len(x) * plan.outputs)
    example, output = np.divmod(positions, plan.outputs)
    return example, output, plan.reads(output)


def _on(x: Tensor, values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).to(x.device, non_blocking=True)


def cross_moment(y: Tensor, x: Tensor, g: Geometry, out: Tensor) -> None:
    """Write ``mean(y_c p)`` of each channel, (C, K): the weight gradient at ``dy = y / m``.

    Args:
        y: like the output of the layer for x, (N, C, *spatial), in the dtype of ``out``.
        x: input of the layer, in the same dtype.
        g: how the layer reads it.
        out: (C, K), rows may lie apart.
    """
    m, C = y.numel() // y.shape[1], y.shape[1]
    if not g.kernel or (m <= _FEW and g.groups == 1):
        dy = y.movedim(1, 0).reshape(C, m) / m
        torch.mm(dy, patches(x, g)[0], out=out)
        return
    pads = [before for before, _ in g.padding]
    if g.mode != "zeros" or any(before != behind for before, behind in g.padding):
        around = [p for pair in reversed(g.padding) for p in pair]
        x = F.pad(x, around, _torch_mode(g.mode))
        pads = [0] * len(pads)
    filters = x.new_empty(C, x.shape[1] // g.groups, *g.kernel)
    _, gradient, _ = torch.ops.aten.convolution_backward(
        y,
        x,
        filters,
        None,
        g.stride,
        pads,
        g.dilation,
        False,
        [0] * len(pads),
        g.groups,
        (False, True, False),
    )
    torch.mul(gradient.reshape(out.shape), 1 / m, out=out)  # it may be channels_last


def _torch_mode(mode: str) -> str:
    return "constant" if mode == "zeros" else mode


def covariance(x: Tensor, mean: Tensor, g: Geometry, out: Tensor) -> None:
    """Write ``mean((p - E[p]) (p - E[p])^T)`` of each group, (G, K, K).

    Args:
        x: input of the layer, in the dtype of ``out``.
        mean: E[p], (G, K).
        g: how the layer reads x.
        out: (G, K, K), of any strides.
    """
    positions = _plan(tuple(x.shape[2:]), g).outputs if g.kernel else 1
    examples = max(1, _AT_ONCE // (mean.numel() * positions))
    total = torch.zeros(g.groups, *2 * [mean.shape[1]], dtype=out.dtype, device=out.device)
    for part in x.split(examples):
        p = patches(part, g) - mean.unsqueeze(1)
        total.baddbmm_(p.transpose(1, 2), p)
    out.copy_(total / (len(x) * positions))
