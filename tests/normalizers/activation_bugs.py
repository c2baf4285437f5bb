"""The activation-based normalizers with one planted bug each: those that a rewrite invites.

Published code of these layers has had several of them: a variance with m - 1 in training, a
running variance with m, a threshold before the affine part, noise that enters the averages.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normalizers.activation_subjects import (
    B0,
    FRN,
    FRN_LEARNED,
    L1,
    LINF,
    NOISY,
    S0,
    VARIANCE,
    Subject,
)
from renorm import nn as rnn
from renorm.nn.normalizers.base import over_batch, over_positions, per_channel, variance


class ThresholdBeforeAffine(rnn.FilterResponseNorm):
    def _normalized(self, x: Tensor) -> Tensor:
        square = x.square().mean(over_positions(x), keepdim=True)
        y = torch.maximum(x * (square + self.eps).rsqrt(), per_channel(self.threshold, x))
        return self._scaled(y)


class ReluInsteadOfThreshold(rnn.FilterResponseNorm):
    def _normalized(self, x: Tensor) -> Tensor:
        square = x.square().mean(over_positions(x), keepdim=True)
        return self._scaled(x * (square + self.eps).rsqrt()).relu() + 0 * self.threshold.sum()


class MeanSquareHeld(rnn.FilterResponseNorm):
    """No gradient through the statistic."""

    def _normalized(self, x: Tensor) -> Tensor:
        square = x.detach().square().mean(over_positions(x), keepdim=True)
        y = self._scaled(x * (square + self.eps).rsqrt())
        return torch.maximum(y, per_channel(self.threshold, y))


class EpsWithoutItsSize(rnn.FilterResponseNorm):
    """The learned eps is added as it is, so its gradient has the wrong sign where it is below 0."""

    def _normalized(self, x: Tensor) -> Tensor:
        square = x.square().mean(over_positions(x), keepdim=True) if x.dim() > 2 else x.square()
        assert self.learned_eps is not None
        y = self._scaled(x * (square + self.eps + self.learned_eps).abs().rsqrt())
        return torch.maximum(y, per_channel(self.threshold, y))


class BiasedAverage(rnn.VarianceNorm):
    """The running variance averages the biased one."""

    def _normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return super()._normalized(x)
        var = variance(x, over_batch(x))
        self._track({"running_var": var.detach().flatten()})
        return self._scaled(x * (var + self.eps).rsqrt())


class UnbiasedStep(rnn.VarianceNorm):
    """The batch is divided by the unbiased deviation."""

    def _normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return super()._normalized(x)
        var = x.var(over_batch(x), keepdim=True)
        self._track({"running_var": var.detach().flatten()})
        return self._scaled(x * (var + self.eps).rsqrt())


class Centring(rnn.VarianceNorm):
    def _normalized(self, x: Tensor) -> Tensor:
        return super()._normalized(x - x.mean(over_batch(x), keepdim=True))


class MeanOfSquares(rnn.VarianceNorm):
    """E[x^2] - E[x]^2, which loses all digits where the mean is large."""

    def _normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return super()._normalized(x)
        dims = over_batch(x)
        var = (x.square() - x.mean(dims, keepdim=True).square()).mean(dims, keepdim=True).relu()
        count = x.numel() // self.num_features
        self._track({"running_var": var.detach().flatten() * count / (count - 1)})
        return self._scaled(x * (var + self.eps).rsqrt())


class BatchAlone(rnn.EvoNormB0):
    """The deviation of the instance is that of the batch."""

    def _normalized(self, x: Tensor) -> Tensor:
        var = variance(x, over_batch(x))
        if self.training:
            count = x.numel() // self.num_features
            self._track({"running_var": var.detach().flatten() * count / (count - 1)})
        else:
            var = per_channel(self.running_var, x)
        std = (var + self.eps).sqrt()
        return self._scaled(x / torch.maximum(std, per_channel(self.v, x) * x + std))


class BatchInEval(rnn.EvoNormB0):
    def _normalized(self, x: Tensor) -> Tensor:
        training, self.training = self.training, True
        kept = {name: b.clone() for name, b in self.named_buffers()}
        y = super()._normalized(x)
        self.training = training
        if not training:
            for name, value in kept.items():
                self.get_buffer(name).copy_(value)
        return y


class InterleavedGroups(rnn.EvoNormS0):
    """Channels 0, 3, 6, ... are a group, not neighbours."""

    def _normalized(self, x: Tensor) -> Tensor:
        order = torch.arange(self.num_features).view(-1, self.groups).t().flatten()
        grouped = x[:, order].unflatten(1, (self.groups, -1))
        var = variance(grouped, list(range(2, grouped.dim())))
        var = var.expand(*grouped.shape[:3], *var.shape[3:]).flatten(1, 2)[:, order.argsort()]
        return self._scaled(x * (per_channel(self.v, x) * x).sigmoid() * (var + self.eps).rsqrt())


class MeanOfSignsForgotten(rnn.LpBatchNorm):
    """The gradient of mean(|x - mean|) does not flow through the mean."""

    def _normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return super()._normalized(x)
        mean = x.mean(over_batch(x), keepdim=True)
        moment = self._moment(x - mean.detach())
        kept = {"running_mean": mean, "running_moment": moment}
        self._track({name: value.detach().flatten() for name, value in kept.items()})
        return self._scaled((x - mean) / (moment + self.eps))


class MomentHeld(rnn.LpBatchNorm):
    """No gradient through the scale."""

    def _moment(self, u: Tensor) -> Tensor:
        return super()._moment(u.detach())


class LargestNotInSize(rnn.LpBatchNorm):
    """The maximum itself, not that of absolute values."""

    def _moment(self, u: Tensor) -> Tensor:
        return u.amax(over_batch(u), keepdim=True)


class NoiseBeforeAffine(rnn.NoisyBatchNorm):
    def _normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return super()._normalized(x)
        weight, bias = self.weight, self.bias
        self.weight = self.bias = None
        y = super()._normalized(x)
        self.weight, self.bias = weight, bias
        return self._scaled(y)


class NoiseInTheAverages(rnn.NoisyBatchNorm):
    def _normalized(self, x: Tensor) -> Tensor:
        y = super()._normalized(x)
        if self.training:
            mean = y.mean(over_batch(y)).detach().to(self.running_mean.dtype)
            self.running_mean.copy_(mean)
        return y


class NoiseInEval(rnn.NoisyBatchNorm):
    def _normalized(self, x: Tensor) -> Tensor:
        y = super()._normalized(x)
        scale, shift = self._noise(x)
        return y if self.training else scale * y + shift


class AveragesAnything(rnn.NoisyBatchNorm):
    """Torch's own update: one bad batch stays in the statistics."""

    def _normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return super()._normalized(x)
        mean, var = (b.to(x.dtype, copy=True) for b in (self.running_mean, self.running_var))
        weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        rate = self.momentum
        if rate is None:
            rate = 1 / (int(self.num_batches_tracked) + 1)
        y = F.batch_norm(x, mean, var, weight, bias, True, rate, self.eps)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self.num_batches_tracked.add_(1)
        scale, shift = self._noise(x)
        return scale * y + shift


def _planted(subject: Subject, cls: type[Any]) -> Subject:
    return replace(subject, id=cls.__name__, cls=cls)


BUGS = [
    _planted(FRN, ThresholdBeforeAffine),
    _planted(FRN, ReluInsteadOfThreshold),
    _planted(FRN, MeanSquareHeld),
    _planted(FRN_LEARNED, EpsWithoutItsSize),
    _planted(VARIANCE, BiasedAverage),
    _planted(VARIANCE, UnbiasedStep),
    _planted(VARIANCE, Centring),
    _planted(VARIANCE, MeanOfSquares),
    _planted(B0, BatchAlone),
    _planted(B0, BatchInEval),
    _planted(S0, InterleavedGroups),
    _planted(L1, MeanOfSignsForgotten),
    _planted(L1, MomentHeld),
    _planted(LINF, LargestNotInSize),
    _planted(NOISY, NoiseBeforeAffine),
    _planted(NOISY, NoiseInTheAverages),
    _planted(NOISY, NoiseInEval),
    _planted(NOISY, AveragesAnything),
]
