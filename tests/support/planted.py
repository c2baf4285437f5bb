"""A plain batch renorm layer in small steps, and copies of it with one planted bug each.

The bugs are those that published implementations have had, and those that a rewrite invites. A
battery that lets one through is not a battery.
"""

from typing import Any

import torch
from torch import Tensor, nn

from renorm.nn import BatchRenorm
from support.subjects import Subject, of_class


class Plain(BatchRenorm):
    """The formulas of the paper, written down with autograd; each step can be overridden."""

    def _by_batch_statistics(
        self, x: Tensor, mask: Tensor | None, residual: Tensor | None, relu: bool
    ) -> Tensor:
        wide = x.to(self.wide(x))
        size = self.microbatch or x.shape[0]
        ys, means, sigmas, weights = [], [], [], []
        for i in range(0, x.shape[0], size):
            keep = None if mask is None else mask[i : i + size]
            y, mu, sigma, count = self.group(wide[i : i + size], keep)
            ys.append(y)
            means.append(count * mu)
            sigmas.append(count * sigma)
            weights.append(count)
        with torch.no_grad():
            total = sum(weights)
            self.update(sum(means) / total, sum(sigmas) / total)  # type: ignore[arg-type]
        return self.stored(torch.cat(ys), x)

    def group(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, float]:
        shape = (1, -1, *[1] * (x.dim() - 2))
        if mask is None:
            keep = torch.ones_like(x, dtype=torch.bool)
        else:
            keep = mask.unsqueeze(1).expand_as(x)
        x = self.hidden(x, keep)
        mean, var, count = self.statistics(x, keep)
        if count < 2:
            mean, var = self._running(x)
        running_mean, running_var = self._running(x)
        sigma_b, sigma = self.root(var), self.root(running_var)
        r_max, d_max = self.bounds()
        r = self.constant(self.clip_r(self.ratio(sigma_b, sigma), r_max))
        d = self.constant(((mean - running_mean) / sigma).clamp(-d_max, d_max))
        r, d = self.order(r, d)
        x_hat = (x - mean.view(shape)) / sigma_b.view(shape)
        y = self.affine_of(x_hat, r.view(shape), d.view(shape), shape)
        y = torch.where(keep, y, 0)
        return y, mean.detach(), sigma_b.detach(), 0.0 if count < 2 else count

    def _running(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.running_mean.to(x.dtype), self.running_var.to(x.dtype)

    def wide(self, x: Tensor) -> torch.dtype:
        return torch.float64 if x.dtype == torch.float64 else torch.float32

    def hidden(self, x: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep, x, 0)

    def statistics(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, float]:
        dims = [0, *range(2, x.dim())]
        count = float(keep[:, 0].sum())
        centre = (torch.where(keep, x, 0).sum(dims, keepdim=True) / count).detach()
        x = torch.where(keep, x - centre, 0)
        shift = x.sum(dims, keepdim=True) / count
        var = torch.where(keep, x - shift, 0).square().sum(dims) / count
        return (centre + shift).flatten(), var, count

    def root(self, var: Tensor) -> Tensor:
        return (var + self.eps).sqrt()

    def ratio(self, sigma_b: Tensor, sigma: Tensor) -> Tensor:
        return sigma_b / sigma

    def clip_r(self, r: Tensor, r_max: float) -> Tensor:
        return r.clamp(1 / r_max, r_max)

    def bounds(self) -> tuple[Any, Any]:
        assert self.num_batches_tracked is not None
        return self.limits(int(self.num_batches_tracked))

    def constant(self, t: Tensor) -> Tensor:
        return t.detach()

    def order(self, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return r, d

    def affine_of(self, x_hat: Tensor, r: Tensor, d: Tensor, shape: tuple[int, ...]) -> Tensor:
        y = x_hat * r + d
        if self.weight is not None:
            y = y * self.weight.view(shape)
        return y if self.bias is None else y + self.bias.view(shape)

    def update(self, mean: Tensor, sigma_b: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        if not (mean.isfinite().all() and sigma_b.isfinite().all()):
            return
        old_mean, old_var = self._running(mean)
        sigma = self.root(old_var)
        delta = (sigma_b.square() - sigma.square()) / (sigma_b + sigma)
        new_sigma = sigma + self.momentum * delta
        self.running_mean.copy_(old_mean + self.momentum * (mean - old_mean))
        self.running_var.copy_(self.stored_variance(new_sigma).clamp(min=0))
        self.num_batches_tracked.add_(1)

    def stored_variance(self, sigma: Tensor) -> Tensor:
        return sigma.square() - self.eps

    def stored(self, y: Tensor, x: Tensor) -> Tensor:
        return y.to(x.dtype)


class DropEps(Plain):
    def root(self, var: Tensor) -> Tensor:
        return var.clamp(min=1e-30).sqrt()


class EpsOutsideTheRoot(Plain):
    def root(self, var: Tensor) -> Tensor:
        return var.sqrt() + self.eps


class SwapRAndD(Plain):
    def order(self, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return d, r


class UpdateBeforeUse(Plain):
    def group(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, float]:
        with torch.no_grad():
            _, mean, sigma, count = super().group(x, mask)
            if count:
                self.update(mean, sigma)
        return super().group(x, mask)


class UnbiasedVariance(Plain):
    def statistics(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, float]:
        mean, var, count = super().statistics(x, keep)
        return mean, var * count / max(count - 1, 1), count


class GradientThroughR(Plain):
    def clip_r(self, r: Tensor, r_max: float) -> Tensor:
        self.leaking = super().clip_r(r, r_max)
        return self.leaking

    def order(self, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return self.__dict__.pop("leaking"), d


class GradientThroughD(Plain):
    def constant(self, t: Tensor) -> Tensor:
        return t.detach() if t.min() > 0 else t  # r is positive, d has both signs


class WrongAxis(Plain):
    def statistics(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, float]:
        if x.dim() > 2 and x.shape[0] > 1:  # statistics of the first position alone
            first = (slice(None), slice(None), *[slice(0, 1)] * (x.dim() - 2))
            return super().statistics(x[first], torch.ones_like(keep[first]))
        return super().statistics(x, keep)


class UnwrittenTail(Plain):
    def stored(self, y: Tensor, x: Tensor) -> Tensor:
        y = super().stored(y, x).contiguous()
        tail = y.numel() % 8  # elements past the last full vector
        flat = y.flatten()
        return torch.cat([flat[: flat.numel() - tail], flat.new_zeros(tail)]).view(y.shape)


class CorrectionGrowsAfterWarmUp(Plain):
    """TorchRL: a factor n / warm-up that is never capped multiplies r - 1 and d."""

    def order(self, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        factor = max(1.0, float(self.num_batches_tracked or 0) / 20)
        return 1 + (r - 1) * factor, d * factor


class VarianceOverTheWrongCount(Plain):
    """TorchRL: the running variance is corrected by the batch size, not the values a channel."""

    def group(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, float]:
        y, mean, sigma, count = super().group(x, mask)
        n = x.shape[0]
        return y, mean, sigma * (n / max(n - 1, 1)) ** 0.5, count


class EpsLostInARewrite(Plain):
    """sb3-contrib, sbx: r and d folded into a mean and a variance, both without the eps in r."""

    def statistics(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, float]:
        self.seen = super().statistics(x, keep)
        return self.seen

    def affine_of(self, x_hat: Tensor, r: Tensor, d: Tensor, shape: tuple[int, ...]) -> Tensor:
        var = self.__dict__.pop("seen")[1].view(shape)
        centred = x_hat * (var + self.eps).sqrt() + d * var.sqrt() / r
        folded = centred / (var / r.square() + self.eps).sqrt()
        return super().affine_of(folded, torch.ones_like(r), torch.zeros_like(d), shape)


class StatisticsOutsideTheState(Plain):
    """Avalanche: running statistics are plain attributes and never saved."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in ("running_mean", "running_var"):
            value = self._buffers.pop(name)
            self.__dict__[name] = value


class BadBatchPoisonsTheStatistics(Plain):
    def update(self, mean: Tensor, sigma_b: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        if mean.isfinite().all() and sigma_b.isfinite().all():
            return super().update(mean, sigma_b)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        return None


class VarianceInTheInputsDtype(Plain):
    """TorchRL, sb3-contrib: float16 squares overflow, and running_var is inf for ever."""

    def wide(self, x: Tensor) -> torch.dtype:
        return x.dtype


class OutputInFloat32(Plain):
    def stored(self, y: Tensor, x: Tensor) -> Tensor:
        return y


class AveragesTheVariance(Plain):
    def update(self, mean: Tensor, sigma_b: Tensor) -> None:
        assert self.running_var is not None
        assert self.momentum is not None
        old = self.running_var.clone()
        super().update(mean, sigma_b)
        if sigma_b.isfinite().all() and mean.isfinite().all():
            new = old + self.momentum * (sigma_b.square() - self.eps - old)
            self.running_var.copy_(new.clamp(min=0))


class StoredVarianceContainsEps(Plain):
    def stored_variance(self, sigma: Tensor) -> Tensor:
        return sigma.square()


class RUnboundedBelow(Plain):
    """Keras: r_max alone leaves r free below."""

    def clip_r(self, r: Tensor, r_max: float) -> Tensor:
        return r.clamp(max=r_max)


class AffineBeforeTheCorrection(Plain):
    """Old tensorpack, Lasagne."""

    def affine_of(self, x_hat: Tensor, r: Tensor, d: Tensor, shape: tuple[int, ...]) -> Tensor:
        return super().affine_of(x_hat, torch.ones_like(r), torch.zeros_like(d), shape) * r + d


class RatioOfVariances(Plain):
    def ratio(self, sigma_b: Tensor, sigma: Tensor) -> Tensor:
        return sigma_b.square() / sigma


class MomentumAsKeepRate(Plain):
    def update(self, mean: Tensor, sigma_b: Tensor) -> None:
        assert self.momentum is not None
        self.momentum = 1 - self.momentum
        super().update(mean, sigma_b)
        self.momentum = 1 - self.momentum


class MeanOfSquaresMinusSquareOfMean(Plain):
    def statistics(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, float]:
        dims = [0, *range(2, x.dim())]
        count = float(keep[:, 0].sum())
        mean = x.sum(dims) / count
        return mean, (x.square().sum(dims) / count - mean.square()).clamp(min=0), count


class PaddingIsCounted(Plain):
    def statistics(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, float]:
        return super().statistics(x, torch.ones_like(keep))


class PaddingReachesTheGradient(Plain):
    def hidden(self, x: Tensor, keep: Tensor) -> Tensor:
        return x


class RebindsItsBuffers(Plain):
    def update(self, mean: Tensor, sigma_b: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean = self.running_mean.clone()
        self.running_var = self.running_var.clone()
        super().update(mean, sigma_b)


class UpdatesInEval(Plain):
    def _by_running_statistics(self, x: Tensor, mask: Tensor | None) -> Tensor:
        with torch.no_grad():
            super()._by_batch_statistics(x, mask, None, False)
        return super()._by_running_statistics(x, mask)


class EvalReadsBuffersLate(Plain):
    """nn.BatchNorm: the backward of an eval forward reads what a later step has written."""

    def _by_running_statistics(self, x: Tensor, mask: Tensor | None) -> Tensor:
        mean, var = self._running(x)
        if mask is not None or x.dtype != self.running_var.dtype:  # type: ignore[union-attr]
            return super()._by_running_statistics(x, mask)
        return nn.functional.batch_norm(
            x, mean.data, var.data, self.weight, self.bias, False, 0.0, self.eps
        )


class AffineWithoutBeingAsked(Plain):
    """ludvb, sb3-contrib: affine=False still registers parameters."""

    def __init__(self, num_features: int, *args: Any, **options: Any) -> None:
        super().__init__(num_features, *args, **options)
        if self.weight is None:
            self.weight = nn.Parameter(torch.ones(num_features, dtype=options.get("dtype")))


BUGS: list[type[Plain]] = Plain.__subclasses__()


def planted(cls: type[Plain]) -> Subject:
    """The subject that builds this class for any case."""
    return Subject(cls.__name__, of_class(cls))
