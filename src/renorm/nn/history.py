"""What a layer remembers of its recent iterations, and their statistics at other weights.

A lag is one remembered iteration: the mean E[p] of the patches p that its source's filters saw, and
what the variance needs beside it, by ``Method``::

    "none"        nothing: statistics stay as they were
    "derivative"  mean(y_c p), (C, K): the variance to first order in the weights
    "outputs"     p_c and y_c at some positions, (G, K, s) and (C, s): the same, on these alone
    "covariance"  mean(p_c p_c^T), (G, K, K): the variance as it is
    "patches"     p_c at some positions, (G, K, s): the same, on these alone

with K values a patch, G groups, C channels, and the index c for "about its mean". No copy of the
weights of then is needed, since the derivative of the variance, times them, is twice the variance.
The first two may be means over s positions too. What a sample tells is the change alone: the
variance itself is that of all positions.
"""

from collections.abc import Callable
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from renorm.kernels import borrowed, patches
from renorm.kernels.call import accumulation_dtype
from renorm.kernels.patches import Geometry

Method = Literal["none", "derivative", "outputs", "covariance", "patches"]

# in which dimension of each tensor the lags lie
_LAG = {
    "offset": 1,
    "rest": 1,
    "inverse_var": 1,
    "valid": 0,
    "mean_patch": 2,
    "derivative": 1,
    "covariance": 2,
    "patches": 2,
    "outputs": 1,
}
_STEP = 0.5 * (5**0.5 - 1)  # multiples of it, modulo 1, fill [0, 1) evenly however many there are
_OTHER_STEP = 2**0.5 - 1


class Sizes(NamedTuple):
    """What the shapes of a history are made of."""

    channels: int  # C
    groups: int  # G
    values: int  # K, of a patch
    lags: int  # L
    sample: int  # s, positions of an iteration; 0 for all


def shapes(method: Method, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor that a layer keeps."""
    C, G, K, L, s = sizes
    kept: dict[str, tuple[int, ...]] = {"offset": (C, L + 1), "rest": (C, L), "valid": (L,)}
    if method == "none":
        return kept
    kept["mean_patch"] = (G, K, L + 1)  # one more: with the current iteration it is one product
    if method in ("derivative", "outputs"):
        kept["inverse_var"] = (C, L)
    if method in ("patches", "outputs"):
        kept["patches"] = (G, K, L, s)
    if method == "derivative":
        kept["derivative"] = (C, L, K)
    elif method == "covariance":
        kept["covariance"] = (G, K, L, K)
    elif method == "outputs":
        kept["outputs"] = (C, L, s)
    return kept


def memory(method: Method, sizes: Sizes, itemsize: int = 4) -> int:
    """The bytes that a layer keeps: 4 a value, or 8 where its input is float64."""
    return itemsize * sum(map(prod, shapes(method, sizes).values()))


class Seen(NamedTuple):
    """What the source of a layer told in its forward, while it had its weights."""

    input: Tensor
    output: Tensor
    version: int | None  # of the output, to notice that something was written into it
    mean_patch: Tensor | None  # E[p], (G, K); None where the weights never change
    own_mean: Tensor | None  # W E[p] + b, (C,)
    lags: tuple[Tensor, Tensor] | None  # mean and variance (C, L) of the lags at these weights


class History:
    """The lags of one layer, in a ring: the next one takes the place of the oldest.

    Args:
        method: what is kept.
        sizes: of the tensors.
        geometry: how the source reads its input; None for ``"none"``.
    """

    def __init__(self, method: Method, sizes: Sizes, geometry: Geometry | None) -> None:
        self.method: Method = method
        self.sizes = sizes
        self.geometry = geometry
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.tensors: dict[str, Tensor] = {}
        self.position = 0  # lags that were ever put into the ring
        self._weights: tuple[Tensor, float | Tensor] | None = None
        self.counts = [0] * self.sizes.lags  # values a channel of each lag
        self._moving = [False] * self.sizes.lags  # lags of weights that may change

    @property
    def empty(self) -> bool:
        """Whether nothing is remembered."""
        return not any(self.counts)

    @property
    def values(self) -> int:
        """Values a channel of all lags together."""
        return sum(self.counts)

    def weights(self) -> tuple[Tensor, float | Tensor]:
        """The part of each lag and, at the end, of the current iteration in an average.

        Returns:
            ``(weights, share)``: (L + 1,), and the last of them, a number on the cpu.
        """
        if self._weights is None:
            valid = self.tensors["valid"]
            both = torch.cat((valid, valid.new_ones(1)))
            weights = both / both.sum()
            share = weights[-1]
            self._weights = weights, float(share) if share.is_cpu else share
        return self._weights

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Have room for lags in this dtype, of which none are kept in another."""
        kept = self.tensors.get("valid")
        if kept is not None and kept.device == device and kept.dtype == dtype:
            return
        self.clear()
        with torch.inference_mode(False):  # forwards outside of it write into these too
            self.tensors = {
                name: torch.zeros(shape, device=device, dtype=dtype)
                for name, shape in shapes(self.method, self.sizes).items()
            }

    def kept(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of all lags as they were, (C, L) each."""
        return self.tensors["offset"][:, :-1], self.tensors["rest"]

    def means(self, W: Tensor, bias: Tensor | None, mean_patch: Tensor | None) -> Tensor:
        """``W E[p] + b`` of all lags and, at the end, of the current iteration: (C, L + 1).

        Args:
            W: the weights of now, (G, C / G, K).
            bias: (C,).
            mean_patch: E[p] of the current iteration, (G, K); None for zeros.
        """
        t = self.tensors
        if mean_patch is None and not any(self._moving):
            return t["offset"] if bias is None else t["offset"] + bias.unsqueeze(1)
        current = t["mean_patch"][:, :, -1]
        current.zero_() if mean_patch is None else current.copy_(mean_patch)
        return borrowed.means(W, bias, t["mean_patch"], t["offset"])

    def variances(self, W: Tensor) -> Tensor:
        """The variance of all lags (C, L) at the weights W (G, C / G, K) of now."""
        t, (C, G, K, L, s) = self.tensors, self.sizes
        if not any(self._moving):
            return t["rest"]
        if self.method == "covariance":
            return borrowed.quadratic(W, t["covariance"]).add_(t["rest"]).clamp_(min=0)
        if self.method == "derivative":
            now = torch.bmm(t["derivative"], W.reshape(C, K, 1)).squeeze(2)
            return borrowed.expanded(now, t["rest"], t["inverse_var"])
        outputs = (W @ t["patches"].view(G, K, L * s)).view(C, L, s)
        if self.method == "patches":
            return outputs.square_().sum(2).add_(t["rest"]).clamp_(min=0)
        now = outputs.mul_(t["outputs"]).sum(2)
        return borrowed.expanded(now, t["rest"], t["inverse_var"])

    def remember(
        self, seen: Seen | None, x: Tensor, mean: Tensor, var: Tensor, counted: bool | Tensor
    ) -> None:
        """Put an iteration in the place of the oldest lag.

        Args:
            seen: by the source; None for ``"none"``.
            x: input of the layer (N, C, *spatial).
            mean: (C,), of x.
            var: (C,), biased.
            counted: if not, the oldest stays; a 0-d tensor where the host does not know.
        """
        slot, values = self.position % self.sizes.lags, x.numel() // x.shape[1]
        self.position += 1
        if counted is False:
            return
        places = {name: t.select(_LAG[name], slot) for name, t in self.tensors.items()}
        before = {} if counted is True else {name: t.clone() for name, t in places.items()}
        self._write(places, seen, x, mean, var, slot)
        places["valid"].fill_(1)
        if not self.counts[slot] or counted is not True:
            self._weights = None
        for name, old in before.items():
            places[name].copy_(torch.where(counted, places[name], old))  # type: ignore[arg-type]
        self.counts[slot] = values

    def _write(
        self,
        places: dict[str, Tensor],
        seen: Seen | None,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        slot: int,
    ) -> None:
        own = None if seen is None else seen.own_mean
        places["offset"].copy_(mean if own is None else mean - own)
        rest = places["rest"].copy_(var)
        if "inverse_var" in places:
            inverse = var.reciprocal()
            places["inverse_var"].copy_(inverse.masked_fill_(inverse.isinf(), 0))
        moves = seen is not None and seen.mean_patch is not None
        if moves:
            assert seen is not None
            assert seen.mean_patch is not None
            places["mean_patch"].copy_(seen.mean_patch)
            self._write_second(places, seen.input, seen.mean_patch, x, mean, rest)
        elif self._moving[slot]:
            for name in ("mean_patch", "derivative", "covariance", "patches", "outputs"):
                if name in places:
                    places[name].zero_()
        self._moving[slot] = moves

    def _write_second(
        self,
        places: dict[str, Tensor],
        given: Tensor,
        mean_patch: Tensor,
        x: Tensor,
        mean: Tensor,
        rest: Tensor,
    ) -> None:
        """What the variance needs; ``rest`` is the variance, and loses what this tells of it."""
        g, given = self.geometry, given.to(mean.dtype)
        assert g is not None
        if self.sizes.sample:
            where = self._positions(x, self.sizes.sample)
            p = (patches.patches(given, g, where) - mean_patch.unsqueeze(1)) / len(where) ** 0.5
            y = (_rows(x, where) - mean) / len(where) ** 0.5
            rest.sub_(y.square().sum(0))
            _write_sample(places, p, y)
        elif self.method == "derivative":
            about_mean = x.to(mean.dtype) - mean.view(-1, *[1] * (x.dim() - 2))
            patches.cross_moment(about_mean, given, g, places["derivative"])
            rest.zero_()
        else:
            patches.covariance(given, mean_patch, g, places["covariance"])
            rest.zero_()

    def _positions(self, x: Tensor, s: int) -> np.ndarray:
        """Where this iteration is sampled: all positions if there are no more than s.

        Low-discrepancy points, moved by another step each iteration: each position is as likely
        as any other, the same ones are taken in a run that is resumed, and no generator is used.
        """
        m = x.numel() // x.shape[1]
        if m <= s:
            return np.arange(m)
        points = np.arange(1, s + 1) * _STEP + self.position * _OTHER_STEP
        return (points % 1 * m).astype(np.int64)

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow ``nn.Module.to`` and its likes, in float32 at least."""
        if any(t.is_meta and not function(t).is_meta for t in self.tensors.values()):
            self.clear()  # to_empty: there are no values to follow with
        for name, t in self.tensors.items():
            moved = function(t)
            self.tensors[name] = t.to(moved.device, accumulation_dtype(moved.dtype))
        self._weights = None

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors for a checkpoint."""
        if not self.tensors:
            return {}
        host = torch.tensor([[self.position] * self.sizes.lags, self.counts, self._moving])
        kept = {**self.tensors, "host": host}
        if "mean_patch" in kept:  # without the place of the current iteration
            kept["mean_patch"] = kept["mean_patch"][:, :, :-1]
        return kept

    def load(self, state: dict[str, Any], like: Tensor | None) -> None:
        """Take up what ``state`` gave, if it is of this kind of history; else begin anew.

        Args:
            state: of any device and dtype, as a checkpoint has it.
            like: has the device and, in float32 at least, the dtype for it; None to leave them.
        """
        self.clear()
        host = state.pop("host", None)
        if "mean_patch" in state:
            state["mean_patch"] = F.pad(state["mean_patch"], (0, 1))
        expected = shapes(self.method, self.sizes)
        if host is None or {name: tuple(t.shape) for name, t in state.items()} != expected:
            return
        self.tensors = {name: t.detach().clone() for name, t in state.items()}
        if like is not None:
            self.apply(lambda t: t.to(like.device, like.dtype))
        self.position = int(host[0, 0])
        self.counts = [int(n) for n in host[1]]
        self._moving = [bool(n) for n in host[2]]


def _rows(x: Tensor, positions: np.ndarray) -> Tensor:
    """The channels of x (N, C, *spatial) at some positions, (s, C)."""
    planes = x.unsqueeze(2) if x.dim() == 2 else x.flatten(2)
    example, place = np.divmod(positions, planes.shape[2])
    return planes[torch.from_numpy(example), :, torch.from_numpy(place)]


def _write_sample(places: dict[str, Tensor], p: Tensor, y: Tensor) -> None:
    """Write what sampled patches (G, s, K) and outputs (s, C), over the root of s, tell."""
    if "derivative" in places:
        by_group = y.view(len(y), len(p), -1).permute(1, 2, 0)
        places["derivative"].copy_((by_group @ p).view(y.shape[1], -1))
    if "covariance" in places:
        places["covariance"].copy_(p.transpose(1, 2) @ p)
    if "patches" in places:
        _fill(places["patches"], p.transpose(1, 2))
    if "outputs" in places:
        _fill(places["outputs"], y.t())


def _fill(place: Tensor, values: Tensor) -> None:
    """Write ``values`` into the first entries of the last dimension, and zeros behind them."""
    n = values.shape[-1]
    place[..., :n].copy_(values)
    if n < place.shape[-1]:
        place[..., n:].zero_()
