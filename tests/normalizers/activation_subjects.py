"""The activation-based normalizers as they are tested: how to build one, and what is exact."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from renorm import nn as rnn
from renorm import reference as ref

Array = np.ndarray


@dataclass
class Exact:
    """What a forward and backward pass must give, in float64; gradients by parameter name."""

    y: Array
    dx: Array
    gradients: dict[str, Array]
    statistics: dict[str, Array] = field(default_factory=dict)  # of the batch, as they are averaged


@dataclass(frozen=True)
class Subject:
    """A kind of layer.

    Args:
        id: shown in test ids.
        cls: its class.
        options: further arguments of it.
        exact: (layer, x, dy) -> what its training step must give.
        inference: (layer, x) -> what eval must give; None where that is the same function.
        one_position: whether it takes (N, C) input.
        ignores_shift, ignores_scale: what an affine change of a channel leaves as it is, but for
            eps.
        alone: whether an example is normalized without the others in training.
    """

    id: str
    cls: type[Any]
    options: dict[str, Any]
    exact: Callable[[Any, Array, Array], Exact]
    inference: Callable[[Any, Array], Array] | None
    one_position: bool = True
    ignores_shift: bool = False
    ignores_scale: bool = True
    alone: bool = False

    def build(self, channels: int = 12, **options: Any) -> Any:
        """A layer with parameters and statistics that show each mistake, always the same."""
        layer = self.cls(channels, **{**self.options, **options})
        g = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, p in layer.named_parameters():
                value = torch.rand(p.shape, generator=g, dtype=torch.float64)
                p.copy_(value + 0.5 if name in ("weight", "v") else value - 0.5)
            for name, b in layer.named_buffers():
                if name != "num_batches_tracked":
                    value = torch.rand(b.shape, generator=g, dtype=torch.float64)
                    b.copy_(value - 0.5 if name == "running_mean" else value + 0.5)
        if isinstance(layer, rnn.NoisyBatchNorm):
            layer.generator = torch.Generator().manual_seed(11)
        return layer


def numbers(t: Tensor) -> Array:
    return t.detach().to(torch.float64, copy=True).numpy()


def _affine(layer: Any) -> tuple[Array, Array]:
    if layer.weight is None:
        return np.ones(layer.num_features), np.zeros(layer.num_features)
    return numbers(layer.weight), numbers(layer.bias)


def _positions(x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)


def _unbiased(x: Array) -> Array:
    return ref.as_rows(x).var(axis=0, ddof=1)


def _frn(layer: Any, x: Array, dy: Array) -> Exact:
    (gamma, beta), tau, learned = _affine(layer), numbers(layer.threshold), layer.learned_eps
    start = 0.0 if learned is None else float(learned.detach())
    given = (_positions(x), gamma, beta, tau, layer.eps + abs(start))
    z, _ = ref.filter_response_norm(*given)
    dx, dgamma, dbeta, dtau, deps = ref.filter_response_norm_backward(_positions(dy), *given)
    gradients = {"weight": dgamma, "bias": dbeta, "threshold": dtau}
    if learned is not None:
        gradients["learned_eps"] = np.array([deps * np.sign(start)])
    return Exact(z.reshape(x.shape), dx.reshape(x.shape), gradients)


def _b0(layer: Any, x: Array, dy: Array) -> Exact:
    (gamma, beta), v, eps = _affine(layer), numbers(layer.v), layer.eps
    y = ref.evonorm_b0(_positions(x), v, gamma, beta, eps)
    dx, dv, dgamma, dbeta = ref.evonorm_b0_backward(_positions(dy), _positions(x), v, gamma, eps)
    gradients = {"weight": dgamma, "bias": dbeta, "v": dv}
    statistics = {"running_var": _unbiased(x)}
    return Exact(y.reshape(x.shape), dx.reshape(x.shape), gradients, statistics)


def _b0_inference(layer: Any, x: Array) -> Array:
    (gamma, beta), v, var = _affine(layer), numbers(layer.v), numbers(layer.running_var)
    y = ref.evonorm_b0_inference(_positions(x), var, v, gamma, beta, layer.eps)
    return y.reshape(x.shape)


def _s0(layer: Any, x: Array, dy: Array) -> Exact:
    (gamma, beta), v = _affine(layer), numbers(layer.v)
    settings = (layer.groups, layer.eps)
    y = ref.evonorm_s0(_positions(x), v, gamma, beta, *settings)
    dx, dv, dgamma, dbeta = ref.evonorm_s0_backward(
        _positions(dy), _positions(x), v, gamma, *settings
    )
    gradients = {"weight": dgamma, "bias": dbeta, "v": dv}
    return Exact(y.reshape(x.shape), dx.reshape(x.shape), gradients)


def _variance(layer: Any, x: Array, dy: Array) -> Exact:
    (gamma, beta), rows = _affine(layer), ref.as_rows(x)
    y, _ = ref.variance_norm(rows, gamma, beta, layer.eps)
    dx, dgamma, dbeta = ref.variance_norm_backward(ref.as_rows(dy), rows, gamma, layer.eps)
    gradients, statistics = {"weight": dgamma, "bias": dbeta}, {"running_var": _unbiased(x)}
    return Exact(ref.as_maps(y, x.shape), ref.as_maps(dx, x.shape), gradients, statistics)


def _variance_inference(layer: Any, x: Array) -> Array:
    gamma, beta = _affine(layer)
    scale = np.sqrt(numbers(layer.running_var) + layer.eps)
    return ref.as_maps(gamma * ref.as_rows(x) / scale + beta, x.shape)


def _lp(layer: Any, x: Array, dy: Array) -> Exact:
    (gamma, beta), rows = _affine(layer), ref.as_rows(x)
    y, mu, M = ref.lp_batch_norm(rows, gamma, beta, layer.p, layer.eps, centred=layer.centred)
    dx, dgamma, dbeta = ref.lp_batch_norm_backward(
        ref.as_rows(dy), rows, gamma, layer.p, layer.eps, centred=layer.centred
    )
    is_var = layer.p == 2 and layer.centred
    statistics = {"running_mean": mu}
    statistics |= {"running_var": _unbiased(x)} if is_var else {"running_moment": M}
    gradients = {"weight": dgamma, "bias": dbeta}
    return Exact(ref.as_maps(y, x.shape), ref.as_maps(dx, x.shape), gradients, statistics)


def _lp_inference(layer: Any, x: Array) -> Array:
    gamma, beta = _affine(layer)
    is_var = layer.p == 2 and layer.centred
    M = numbers(layer.running_var if is_var else layer.running_moment)
    scale = np.sqrt(M + layer.eps) if layer.p == 2 else M + layer.eps
    rows = gamma * (ref.as_rows(x) - numbers(layer.running_mean)) / scale + beta
    return ref.as_maps(rows, x.shape)


def _noisy(layer: Any, x: Array, dy: Array) -> Exact:
    (gamma, beta), rows = _affine(layer), ref.as_rows(x)
    drawn = copy.deepcopy(layer)._noise(torch.empty(x.shape, dtype=layer.running_mean.dtype))
    s, m = (ref.as_rows(np.broadcast_to(numbers(t), x.shape)) for t in drawn)
    y, mu, _ = ref.noisy_batch_norm(rows, gamma, beta, s, m, layer.eps)
    dx, dgamma, dbeta = ref.noisy_batch_norm_backward(ref.as_rows(dy), rows, gamma, s, layer.eps)
    gradients = {"weight": dgamma, "bias": dbeta}
    statistics = {"running_mean": mu, "running_var": _unbiased(x)}
    return Exact(ref.as_maps(y, x.shape), ref.as_maps(dx, x.shape), gradients, statistics)


def _batch_norm_inference(layer: Any, x: Array) -> Array:
    mean, var = numbers(layer.running_mean), numbers(layer.running_var)
    return ref.as_maps(
        ref.inference(ref.as_rows(x), mean, var, *_affine(layer), layer.eps), x.shape
    )


def _lp_subject(p: float, centred: bool) -> Subject:
    return Subject(
        f"l{p}{'' if centred else ' of x'}", rnn.LpBatchNorm, {"p": p, "centred": centred},
        _lp, _lp_inference, ignores_shift=centred,
    )  # fmt: skip


FRN = Subject(
    "frn", rnn.FilterResponseNorm, {}, _frn, None, one_position=False, alone=True
)  # fmt: skip
FRN_LEARNED = Subject(
    "frn learned eps", rnn.FilterResponseNorm, {"learned_eps": 1e-4}, _frn, None, alone=True,
    ignores_scale=False,
)  # fmt: skip
VARIANCE = Subject("variance", rnn.VarianceNorm, {}, _variance, _variance_inference)
B0 = Subject("evonorm b0", rnn.EvoNormB0, {}, _b0, _b0_inference, one_position=False)
S0 = Subject("evonorm s0", rnn.EvoNormS0, {"groups": 3}, _s0, None, ignores_scale=False, alone=True)
NOISY = Subject(
    "noisy", rnn.NoisyBatchNorm, {}, _noisy, _batch_norm_inference, ignores_shift=True
)  # fmt: skip
L1, L2, LINF = (_lp_subject(p, True) for p in (1, 2, math.inf))
OF_X = [_lp_subject(p, False) for p in (1, 2, math.inf)]
SUBJECTS = [FRN, FRN_LEARNED, VARIANCE, B0, S0, NOISY, L1, L2, LINF, *OF_X]
