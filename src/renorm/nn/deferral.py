"""Statistics that wait: batches are pooled now, and the layers updated together later.

Until then the layers normalize against the same reference, and the schedule stands still. What a
layer pools are exact moments, so however a batch was split, and in however many processes it
lies, the update is that of the whole batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer

from renorm.kernels.algebra import moved

# a BatchRenorm; its module imports this one
Layer = Any


_RECENT = 16  # batches that wait to be pooled at once, which takes as long as pooling one


class Batch(NamedTuple):
    """The statistics of one batch."""

    counted: Tensor  # () bool: whether they are finite, and of more than one value
    values: float | Tensor  # per channel; () float64 where the device counts them
    mean: Tensor  # (C,)
    var: Tensor  # (C,), biased


class Pool:
    """The moments of the batches of one layer since its last update, in float64.

    Source: Chan, Golub and LeVeque 1979, for the pooling of moments.
    """

    def __init__(self, running_mean: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            like = {"dtype": torch.float64, "device": running_mean.device}
            self.values = torch.zeros(1, **like)  # compiled code loses writes to 0-d tensors
            self.mean = torch.zeros(running_mean.shape, **like)
            self.squares = torch.zeros(running_mean.shape, **like)  # about the mean
        self.recent: list[Batch] = []  # not in the tensors yet
        self.used = False  # whether the tensors have ever held anything

    def add(self, batch: Batch) -> None:
        """Pool a batch."""
        if torch.compiler.is_compiling() or _is_captured(batch.mean):
            self._merge([batch])  # a graph that is replayed appends nothing
            return
        self.recent.append(batch)
        if len(self.recent) == _RECENT:
            self.merge()

    def merge(self) -> None:
        """Have everything in the tensors."""
        if self.recent:
            self._merge(self.recent)
            self.recent = []

    def _merge(self, batches: Sequence[Batch]) -> None:
        with torch.no_grad():
            values = counts(batches, self.values)
            mean = torch.stack([b.mean for b in batches]).double()
            var = torch.stack([b.var for b in batches]).double()
            total = self.values + values.sum()
            apart = mean - self.mean
            shift = (values / total.clamp(min=1)) @ apart
            squares = values @ (var + (apart - shift).square())
            self.squares.add_(squares).add_(self.values * shift.square())
            self.mean.add_(shift)
            self.values.copy_(total)
        self.used = True

    def clear(self) -> None:
        """Forget all batches."""
        self.recent = []
        if self.used:
            for t in (self.values, self.mean, self.squares):
                t.zero_()


def _is_captured(t: Tensor) -> bool:
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def counts(batches: Sequence[Batch], like: Tensor) -> Tensor:
    """How many values count of each batch (B,)."""
    numbers = [b.values for b in batches]
    if any(isinstance(n, Tensor) for n in numbers):
        values = torch.stack([torch.as_tensor(n, device=like.device) for n in numbers])
    else:
        values = on_device(numbers, like.device)
    return values.to(like.dtype) * torch.stack([b.counted for b in batches])


def on_device(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers as a float64 tensor; nothing waits for the device."""
    t = torch.tensor(numbers, dtype=torch.float64)
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t.to(device)


class Moments(NamedTuple):
    """What several layers have pooled, one after the other."""

    values: Tensor  # (L,)
    mean: Tensor  # (sum of C,)
    var: Tensor  # (sum of C,)
    of_layer: Tensor  # (sum of C,), which layer a channel is of


class Standing(NamedTuple):
    """The running statistics of several layers, one after the other, in float64."""

    mean: Tensor  # (sum of C,)
    var: Tensor  # (sum of C,)
    steps: Tensor  # (L,) int64


class Deferral:
    """The put-off updates of some layers."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.depth = 0  # of accumulation; batches go on being pooled while it is above 0
        self._indices: dict[tuple[Any, ...], Tensor] = {}

    def adopt(self, layers: Sequence[Layer]) -> None:
        """Put the updates of these layers off; they keep running statistics and are free."""
        for layer in layers:
            self.layers.append(layer)
            layer._deferral = self

    def disband(self) -> None:
        """Release all layers."""
        for layer in list(self.layers):
            self.release(layer)

    @contextmanager
    def accumulation(self) -> Iterator[None]:
        """Pool all forwards inside; the outermost context makes one update of them, if all is well.

        After an exception of the outermost there is none; inner ones leave what was pooled.
        """
        self.settle()
        self.depth += 1
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.advance() if error is None else self.abandon(error)

    def pool_of(self, layer: Layer) -> Pool:
        """Where this layer pools; made anew when the layer has moved to another device."""
        pool, mean = layer._pool, layer.running_mean
        if pool is None or pool.mean.device != mean.device or pool.mean.shape != mean.shape:
            pool = layer._pool = Pool(mean)
        return pool

    def meet(self, layer: Layer) -> None:
        """A training forward of the layer begins."""

    def settle(self) -> None:
        """Have everything that was sent off arrive in the statistics."""

    def conclude(self) -> None:
        """Settle, and have nothing to do with these statistics any more: they may be changed."""

    def advance(self) -> None:
        """Update the statistics by what was pooled, one step of each layer that saw a batch."""
        for layers in self._by_device():
            moments, buffers = self._collected(layers), buffers_of(layers)
            before = standing(buffers)
            write(buffers, moved_by(Rule.of(layers, before, moments), before, moments))

    def abandon(self, error: BaseException) -> None:
        """Forget what was pooled, because of this error."""
        self.forget_batches()

    def forget_batches(self) -> None:
        """Have nothing pooled."""
        for layer in self.layers:
            if layer._pool is not None:
                layer._pool.clear()

    def release(self, layer: Layer) -> None:
        """Have the layer update its statistics itself, as by default."""
        if layer in self.layers:
            self.layers.remove(layer)
            for name in ("_deferral", "_pool"):
                vars(layer).pop(name, None)

    def _by_device(self) -> list[list[Layer]]:
        found: dict[torch.device, list[Layer]] = {}
        for layer in self.layers:
            if is_ready(layer):
                found.setdefault(layer.running_mean.device, []).append(layer)
        return list(found.values())

    def _collected(self, layers: Sequence[Layer]) -> Moments:
        """What the layers have pooled; their pools are empty then."""
        pools = [self.pool_of(layer) for layer in layers]
        of_layer = self._of_layer([len(pool.mean) for pool in pools], pools[0].mean.device)
        if any(pool.used or len(pool.recent) != 1 for pool in pools):
            for pool in pools:
                pool.merge()
            values = torch.cat([pool.values for pool in pools])
            mean = torch.cat([pool.mean for pool in pools])
            squares = torch.cat([pool.squares for pool in pools])
            var = squares / values.clamp(min=1)[of_layer]
        else:  # one forward of each layer: nothing to pool
            batches = [pool.recent[0] for pool in pools]
            values = counts(batches, pools[0].values)
            mean = torch.cat([b.mean for b in batches]).double()
            var = torch.cat([b.var for b in batches]).double()
        for pool in pools:
            pool.clear()
        return Moments(values, mean, var, of_layer)

    def _of_layer(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        key = (*sizes, str(device))
        if key not in self._indices:  # building one waits for the device
            indices = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            self._indices[key] = indices.to(device)
        return self._indices[key]


def is_ready(layer: Layer) -> bool:
    """Whether the layer has running statistics, and has them now: a lazy one waits for input."""
    mean = layer.running_mean
    return mean is not None and not isinstance(mean, UninitializedBuffer)


class Buffers(NamedTuple):
    """The running statistics of several layers, where they are kept."""

    means: list[Tensor]
    variances: list[Tensor]
    counters: list[Tensor | None]


def buffers_of(layers: Sequence[Layer]) -> Buffers:
    """The buffers that the layers have now."""
    return Buffers(
        [layer.running_mean for layer in layers],
        [layer.running_var for layer in layers],
        [layer.num_batches_tracked for layer in layers],
    )


def standing(buffers: Buffers) -> Standing:
    """A copy of the running statistics as they are."""
    mean = torch.cat(buffers.means).double()
    zero = mean.new_zeros((), dtype=torch.int64)
    steps = torch.stack([zero if n is None else n for n in buffers.counters])
    return Standing(mean, torch.cat(buffers.variances).double(), steps)


class Rule(NamedTuple):
    """How a step of the running statistics is made, for each channel; numbers if all are alike."""

    momentum: float | Tensor
    eps: float | Tensor
    largest: float | Tensor  # that the buffers hold

    @classmethod
    def of(cls, layers: Sequence[Layer], before: Standing, moments: Moments) -> "Rule":
        """The rule of the layers as they are set now."""
        momentum = [
            1 / (n.double() + 1) if layer.momentum is None else layer.momentum
            for layer, n in zip(layers, before.steps, strict=True)
        ]
        eps = [layer.eps for layer in layers]
        largest = [
            min(torch.finfo(t.dtype).max for t in (layer.running_mean, layer.running_var))
            for layer in layers
        ]
        return cls(*(_of_channels(each, moments.of_layer) for each in (momentum, eps, largest)))


def moved_by(rule: Rule, before: Standing, moments: Moments) -> Standing:
    """One step of the running statistics towards these moments.

    A layer without any value stays as it is, its step count too, and so does one whose statistics
    would not be finite in their dtype: batches may be, and their joint variance not.
    """
    values, mean, var, of_layer = moments
    with torch.no_grad():
        old_mean, old_var, steps = before
        new_mean, new_var = moved(mean, var, old_mean, old_var, rule.momentum, rule.eps)
        poisoned = ~(torch.maximum(new_mean.abs(), new_var) <= rule.largest)  # NaN is not
        times = torch.zeros_like(values).index_add_(0, of_layer, poisoned.double())
        counted = (values > 0) & (times == 0)
        return Standing(
            torch.where(counted[of_layer], new_mean, old_mean),
            torch.where(counted[of_layer], new_var, old_var),
            steps + counted,
        )


def write(buffers: Buffers, new: Standing) -> None:
    """Put the statistics into the buffers."""
    sizes = [len(t) for t in buffers.means]
    with torch.no_grad():
        for old, values in ((buffers.means, new.mean), (buffers.variances, new.var)):
            torch._foreach_copy_(old, list(values.split(sizes)))  # type: ignore[attr-defined]
        for counter, n in zip(buffers.counters, new.steps.unbind(), strict=True):
            if counter is not None:
                counter.copy_(n)


def _of_channels(settings: Sequence[Any], of_layer: Tensor) -> float | Tensor:
    first = settings[0]
    if not any(isinstance(s, Tensor) for s in settings):
        if all(s == first for s in settings):
            return first
        return on_device(settings, of_layer.device)[of_layer]
    each = [torch.as_tensor(s, dtype=torch.float64, device=of_layer.device) for s in settings]
    return torch.stack(each)[of_layer]
