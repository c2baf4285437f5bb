"""Channels that carry nothing: constant, dead, lost in eps, saturated, or not finite."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from renorm.measure.collection import Collected
from renorm.measure.inputs import Array, Call
from renorm.measure.layers import affine_of, channels_of, eps_of, statistics_of
from renorm.measure.quantity import Plan, Quantity, told
from renorm.measure.records import ChannelHealth

_SAMPLE = 512  # values of a channel in a call that are looked at for saturation
_FEWEST = 16  # of fewer, too many are at the ends of their range anyway
_END = 1e-3  # of the range, that counts as its end
_SATURATED = 0.95
_DEAD = 1e-3  # deviation of the output


class ChannelHealthQuantity(Quantity):
    """What is wrong with single channels, by all values of the input in train mode."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._ranges: dict[str, _Range] = {}
        self._state = {name: _state(layer) for name, layer in plan.layers.items()}

    def take_call(self, layer: str, call: Call, x: Tensor, mask: Tensor | None) -> None:
        """The values of a call."""
        if (call.values > 0).any():
            self._ranges.setdefault(layer, _Range(x.dtype)).add(x.detach(), mask)

    def records(self, collected: Mapping[str, Collected]) -> Iterator[ChannelHealth]:
        """One for each layer, whether it was called or not."""
        for name, layer in self.plan.layers.items():
            parameters, statistics = self._state[name]
            seen = {}
            if name in self._ranges and name in collected:
                own, found = self._ranges[name], collected[name]
                seen = _seen(own, found, parameters, eps_of(layer))
            bad = np.zeros(channels_of(layer), bool) if statistics is None else _bad(*statistics)
            yield ChannelHealth(
                layer=name,
                channels=channels_of(layer),
                largest=told(self._ranges[name].largest) if name in self._ranges else None,
                headroom=told(self._ranges[name].headroom) if name in self._ranges else None,
                bad_statistics=_indices(bad),
                bad_parameters=_indices(_not_finite(parameters)),
                **{key: _indices(seen[key]) if seen else () for key in _KINDS},
            )


_KINDS = ("constant", "dead", "negative", "eps_dominated", "saturated", "not_finite")


class _Range:
    """Least and largest values of each channel, and how many of them lie there."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._limit = torch.finfo(dtype).max
        self.least: Array = np.array(np.inf)
        self.most: Array = np.array(-np.inf)
        self._calls, self._ends = 0, np.zeros(())

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        """Take in x (N, C, *spatial) where mask (N, *spatial) is True."""
        x = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
        low, high = x, x
        if mask is not None:
            hidden = ~mask.flatten(1).unsqueeze(1)
            low, high = x.masked_fill(hidden, torch.inf), x.masked_fill(hidden, -torch.inf)
        self.least = np.minimum(self.least, _array(low.amin(2).amin(0)))
        self.most = np.maximum(self.most, _array(high.amax(2).amax(0)))
        if mask is None:
            self._add_ends(_sample(x))

    @property
    def largest(self) -> float:
        """The largest magnitude in any channel."""
        return float(np.maximum(np.abs(self.least), np.abs(self.most)).max())

    @property
    def headroom(self) -> float:
        """That, as a fraction of what the dtype holds."""
        return self.largest / self._limit

    @property
    def saturated(self) -> NDArray[np.bool_]:
        """(C,) whether nearly all values lie at the ends of the range of their call."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(self._ends / max(self._calls, 1), self.most.shape) >= _SATURATED

    def _add_ends(self, values: Tensor) -> None:
        values = values[:, :: max(1, values.shape[1] // _SAMPLE)].float()
        if values.shape[1] < _FEWEST:
            return
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        end = _END * (high - low)
        there = (values <= low + end) | (values >= high - end)
        self._ends = self._ends + _array((there & (high > low)).double().mean(1))
        self._calls += 1


def _sample(x: Tensor) -> Tensor:
    """Some positions of x (N, C, S), of all examples: (C, values)."""
    step = max(1, len(x) * x.shape[2] // _SAMPLE)
    return x[:, :, ::step].transpose(0, 1).flatten(1)


def _array(t: Any) -> Array:
    """A copy of a vector, put together from all processes if it is sharded.

    A view would make the memory of t one that fully_shard cannot free.
    """
    whole: Tensor = t.full_tensor() if hasattr(t, "full_tensor") else t
    return whole.detach().to("cpu", torch.float64, copy=True).numpy()


def _state(layer: torch.nn.Module) -> tuple[Array, tuple[Array, Array] | None]:
    """Copies of weight and bias (2, C), and of running mean and variance (C,)."""
    width = channels_of(layer)
    pairs = zip(affine_of(layer), (1.0, 0.0), strict=True)
    parameters = [np.full(width, value) if t is None else _array(t) for t, value in pairs]
    statistics = statistics_of(layer)
    if statistics is None:
        return np.stack(parameters), None
    mean, var = (_array(t) for t in statistics)
    return np.stack(parameters), (mean, var)


def _not_finite(parameters: Array) -> NDArray[np.bool_]:
    finite = np.isfinite(parameters)
    return ~(finite[0] & finite[1])


def _bad(mean: Array, var: Array) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return ~(np.isfinite(mean) & np.isfinite(var) & (var >= 0))


def _seen(
    own: _Range, found: Collected, parameters: Array, eps: float
) -> dict[str, NDArray[np.bool_]]:
    """What is wrong with which channels (C,)."""
    weight, bias = parameters
    mean, var = found.population.mean, found.population.var
    with np.errstate(all="ignore"):
        finite = np.isfinite(own.least) & np.isfinite(own.most) & np.isfinite(var)
        constant = own.least == own.most
        sigma = np.sqrt(var + eps)
        ends = np.stack([own.least, own.most])
        outputs = weight * (ends - mean) / sigma + bias
        dead = np.abs(weight) * np.sqrt(var) / sigma < _DEAD
        varies = finite & ~constant
        return {
            "constant": finite & constant,
            "dead": varies & dead & ~(var < eps),
            "negative": varies & ~dead & (outputs.max(0) <= 0),
            "eps_dominated": varies & (var < eps),
            "saturated": varies & own.saturated,
            "not_finite": ~finite,
        }


def _indices(flags: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(map(int, np.flatnonzero(flags)))
