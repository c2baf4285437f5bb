"""What a layer remembers of its recent iterations, and their statistics at other weights.

A lag is one remembered iteration: the mean E[p] of the patches p that its source's filters saw, and
what the variance needs beside it, by ``Method``::

    "none"        nothing: statistics stay as they were
    "derivative"  mean(y_c p), (C, K): the variance to first order in the weights
    "outputs"     p_c and y_c at some positions, (G, s, K) and (C, s): the same, on these alone
    "covariance"  mean(p_c p_c^T), (G, K, K): the variance as it is
    "patches"     p_c at some positions, (G, s, K): the same, on these alone

with K values a patch, G groups, C channels, and the index c for "about its mean". No copy of the
weights of then is needed, since the derivative of the variance, times them, is twice the variance.
The first two may be means over s positions too. What a sample tells is the change alone: the
variance itself is that of all positions.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from renorm.kernels import borrowed, patches
from renorm.kernels.call import accumulation_dtype
from renorm.kernels.cpu import lags as native
from renorm.kernels.patches import Geometry

if TYPE_CHECKING:  # it is imported where it is used: importing this package stays quick
    import numpy as np

Method = Literal["none", "derivative", "outputs", "covariance", "patches"]

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
    if method in ("derivative", "outputs"):
        kept["inverse_var"] = (C, L)
    # one more: with the current iteration, and what there is of patches, it is one product
    if method in ("patches", "outputs"):
        kept["patches"] = (G, L + 1 + L * s, K)
    else:
        kept["mean_patch"] = (G, L + 1, K)
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
    moves: bool  # whether the weights change: then the history has E[p]
    own_mean: Tensor  # W E[p] + b, (C,), the last column of (C, L + 1)
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

    @property
    def _rows(self) -> Tensor:
        """Mean patches, and in some methods sampled ones behind them: (G, L + 1 ..., K)."""
        return self.tensors["patches" if "patches" in self.tensors else "mean_patch"]

    def at(
        self, W: Tensor, bias: Tensor | None, given: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Statistics at the weights of now.

        Args:
            W: (G, C / G, K).
            bias: (C,).
            given: input of the source, whose mean patch is kept until ``remember``; None where the
                weights do not change.

        Returns:
            ``(own_mean, lags)``: ``W E[p] + b`` of the current iteration (C,), and mean and
            variance (C, L) of the lags, None if nothing is remembered.
        """
        L, g = self.sizes.lags, self.geometry
        if (
            given is not None
            and g is not None
            and self.method != "covariance"
            and native.usable(W)
            and native.readable(W.dtype, W, bias)
        ):
            patches.mean_patch(given, g, W.dtype, self._rows[:, L])
            mean, var = self._at_once(W, bias)
            return mean[:, L], None if self.empty else (mean[:, :L], var)
        patch = None if given is None or g is None else patches.mean_patch(given, g, W.dtype)
        mean = self.means(W, bias, patch)
        return mean[:, L], None if self.empty else (mean[:, :L], self.variances(W))

    def _at_once(self, W: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean (C, L + 1) and variance (C, L), by the code in C."""
        t = self.tensors
        kept, inverse_var = (t["offset"], t["rest"]), t.get("inverse_var")
        if "derivative" in t:
            assert inverse_var is not None
            return native.derived(W, bias, t["mean_patch"], t["derivative"], *kept, inverse_var)
        products = torch.bmm(W, t["patches"].transpose(1, 2)).flatten(0, 1)
        return native.sampled(products, bias, t.get("outputs"), *kept, inverse_var)

    def means(self, W: Tensor, bias: Tensor | None, mean_patch: Tensor | None) -> Tensor:
        """``W E[p] + b`` of all lags and, at the end, of the current iteration: (C, L + 1).

        Args:
            W: the weights of now, (G, C / G, K).
            bias: (C,).
            mean_patch: E[p] of the current iteration, (G, K); None for zeros.
        """
        t, L = self.tensors, self.sizes.lags
        if mean_patch is None and not any(self._moving):
            return t["offset"] if bias is None else t["offset"] + bias.unsqueeze(1)
        current = self._rows[:, L]
        current.zero_() if mean_patch is None else current.copy_(mean_patch)
        return borrowed.means(W, bias, self._rows[:, : L + 1], t["offset"])

    def variances(self, W: Tensor) -> Tensor:
        """The variance of all lags (C, L) at the weights W (G, C / G, K) of now."""
        t, (C, _, K, L, s) = self.tensors, self.sizes
        if not any(self._moving):
            return t["rest"]
        if self.method == "covariance":
            return borrowed.quadratic(W, t["covariance"]).add_(t["rest"]).clamp_(min=0)
        if self.method == "derivative":
            now = torch.bmm(t["derivative"], W.reshape(C, K, 1)).squeeze(2)
            return borrowed.expanded(now, t["rest"], t["inverse_var"])
        sampled = t["patches"][:, L + 1 :].transpose(1, 2)
        outputs = (W @ sampled).view(C, L, s)
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
            counted: if not, nothing is kept; a 0-d tensor where the host does not know, and then
                the oldest lag stays in its place.
        """
        if counted is False:
            return
        slot, values = self.position % self.sizes.lags, x.numel() // x.shape[1]
        self.position += 1
        places = {} if counted is True else self._places(slot)
        before = {name: t.clone() for name, t in places.items()}
        self._write(slot, seen, x, mean, var)
        if not self.counts[slot] or counted is not True:
            self._weights = None
        for name, old in before.items():
            places[name].copy_(torch.where(counted, places[name], old))  # type: ignore[arg-type]
        self.counts[slot] = values

    def _places(self, slot: int) -> dict[str, Tensor]:
        """What belongs to one lag, as views; of a sample, ``patches`` is (G, s, K)."""
        t, (_, _, _, L, s) = self.tensors, self.sizes
        names = ("offset", "rest", "inverse_var", "derivative", "outputs")
        places = {name: t[name][:, slot] for name in names if name in t}
        places["valid"] = t["valid"][slot]
        if self.method != "none":
            places["mean_patch"] = self._rows[:, slot]
        if "covariance" in t:
            places["covariance"] = t["covariance"][:, :, slot]
        if "patches" in t:
            places["patches"] = t["patches"][:, L + 1 + slot * s : L + 1 + (slot + 1) * s]
        return places

    def _write(self, slot: int, seen: Seen | None, x: Tensor, mean: Tensor, var: Tensor) -> None:
        own = None if seen is None else seen.own_mean
        moves = seen is not None and seen.moves
        if native.usable(mean):
            told_all = moves and not self.sizes.sample
            native.keep(mean, var, own, self.tensors, slot, no_rest=told_all)
        else:
            self._keep(self._places(slot), own, mean, var)
        if moves:
            assert seen is not None
            self._write_second(slot, seen.input, x, mean)
        elif self._moving[slot]:
            places = self._places(slot)
            for name in ("mean_patch", "derivative", "covariance", "patches", "outputs"):
                if name in places:
                    places[name].zero_()
        self._moving[slot] = moves

    def _keep(
        self, places: dict[str, Tensor], own: Tensor | None, mean: Tensor, var: Tensor
    ) -> None:
        places["offset"].copy_(mean if own is None else mean - own)
        places["rest"].copy_(var)
        if "inverse_var" in places:
            inverse = var.reciprocal()
            places["inverse_var"].copy_(inverse.masked_fill_(inverse.isinf(), 0))
        places["valid"].fill_(1)

    def _write_second(self, slot: int, given: Tensor, x: Tensor, mean: Tensor) -> None:
        """The mean patch, and what the variance needs beside it, which ``rest`` then loses."""
        g, L = self.geometry, self.sizes.lags
        assert g is not None
        if self.sizes.sample:
            self._write_sample(slot, given, x, mean, g)
            return
        places, given = self._places(slot), given.to(mean.dtype)
        mean_patch = places["mean_patch"].copy_(self._rows[:, L])
        if self.method == "derivative":
            # p is as it is, so what rounding left in the mean of y would be multiplied by E[p]
            about_mean = x.to(mean.dtype) - mean.view(-1, *[1] * (x.dim() - 2))
            about_mean -= about_mean.mean([0, *range(2, x.dim())], keepdim=True)
            patches.cross_moment(about_mean, given, g, places["derivative"])
        else:
            patches.covariance(given, mean_patch, g, places["covariance"])
        places["rest"].zero_()

    def _write_sample(self, slot: int, given: Tensor, x: Tensor, mean: Tensor, g: Geometry) -> None:
        where, t, dtype = self._positions(x, self.sizes.sample), self.tensors, mean.dtype
        readable = native.usable(mean) and native.readable(dtype, given, x)
        if "patches" in t and g.kernel and readable:
            native.sample(given, x, mean, t, slot, patches.reading(given, g, where))
            return
        places = self._places(slot)
        mean_patch = places["mean_patch"].copy_(self._rows[:, self.sizes.lags])
        p = patches.patches(given.to(dtype), g, where) - mean_patch.unsqueeze(1)
        y = (_rows(x, where) - mean) / len(where) ** 0.5
        places["rest"].sub_(y.square().sum(0))
        _write_products(places, p / len(where) ** 0.5, y)

    def _positions(self, x: Tensor, s: int) -> np.ndarray:
        """Where this iteration is sampled: all positions if there are no more than s.

        Low-discrepancy points, moved by another step each iteration: each position is as likely
        as any other, the same ones are taken in a run that is resumed, and no generator is used.
        """
        import numpy as np

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
            moved = t.to(moved.device, accumulation_dtype(moved.dtype))
            self.tensors[name] = moved.contiguous()
        self._weights = None

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors for a checkpoint."""
        if not self.tensors:
            return {}
        host = torch.tensor([[self.position] * self.sizes.lags, self.counts, self._moving])
        kept = {**self.tensors, "host": host}
        for name in ("mean_patch", "patches"):  # without the current iteration
            if name in kept:
                kept[name] = kept[name].clone()
                kept[name][:, self.sizes.lags].zero_()
        return kept

    def load(self, state: dict[str, Any], like: Tensor | None) -> None:
        """Take up what ``state`` gave, if it is of this kind of history; else begin anew.

        Args:
            state: of any device and dtype, as a checkpoint has it.
            like: has the device and, in float32 at least, the dtype for it; None to leave them.
        """
        self.clear()
        host = state.pop("host", None)
        expected = shapes(self.method, self.sizes)
        if host is None or {name: tuple(t.shape) for name, t in state.items()} != expected:
            return
        self.tensors = {
            name: t.detach().clone(memory_format=torch.contiguous_format)
            for name, t in state.items()
        }
        if like is not None:
            self.apply(lambda t: t.to(like.device, like.dtype))
        self.position = int(host[0, 0])
        self.counts = [int(n) for n in host[1]]
        self._moving = [bool(n) for n in host[2]]


def _rows(x: Tensor, positions: np.ndarray) -> Tensor:
    """The channels of x (N, C, *spatial) at some positions, (s, C)."""
    import numpy as np

    planes = x.unsqueeze(2) if x.dim() == 2 else x.flatten(2)
    example, place = np.divmod(positions, planes.shape[2])
    return planes[torch.from_numpy(example), :, torch.from_numpy(place)]


def _write_products(places: dict[str, Tensor], p: Tensor, y: Tensor) -> None:
    """Write what sampled patches (G, s, K) and outputs (s, C), over the root of s, tell."""
    if "derivative" in places:
        by_group = y.view(len(y), len(p), -1).permute(1, 2, 0)
        places["derivative"].copy_((by_group @ p).view(y.shape[1], -1))
    if "covariance" in places:
        places["covariance"].copy_(p.transpose(1, 2) @ p)
    n = len(y)
    if "patches" in places:
        places["patches"][:, :n].copy_(p)
        places["patches"][:, n:].zero_()
    if "outputs" in places:
        places["outputs"][:, :n].copy_(y.t())
        places["outputs"][:, n:].zero_()
