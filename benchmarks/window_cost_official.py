"""Cross-iteration batch norm as its authors' code computes it: the baseline of ``window_cost.py``.

For each layer the derivatives of mu and of E[y^2] by the source's weights come from a call each of
``torch.autograd.grad``, with the graph retained. Lists have (mu, E[y^2], both derivatives, weights)
of the iterations before; what they are at the weights of now is two products and sums over all
weights a lag. A lag of negative variance is left out, channel by channel. It is written as cheaply
as that allows: one difference of weights for both, and the output as one multiplication and one
addition; eps is inside the root.

Source: Yao et al. 2020 (arXiv 2002.05712), section 3, and their code,
github.com/Howal/Cross-iterationBatchNorm.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

import renorm


class Lag(NamedTuple):
    """What an iteration leaves behind."""

    mu: Tensor  # (C,)
    nu: Tensor  # (C,), E[y^2]
    dmu: Tensor  # of the shape of the weights, as are the next two
    dnu: Tensor
    weight: Tensor


class OfficialCrossIteration(nn.BatchNorm2d):
    """The layer, of (N, C, H, W); ``source`` is the convolution in front, without a bias."""

    window: int
    past: list[Lag]  # the latest first
    source: tuple[nn.Conv2d]  # in a tuple, or it would be a child of the layer

    def forward(self, input: Tensor) -> Tensor:
        """Normalize, and remember the iteration."""
        if not self.training:
            return super().forward(input)
        weight = self.source[0].weight
        mu, nu = input.mean((0, 2, 3)), input.square().mean((0, 2, 3))
        one = torch.ones_like(mu)
        (dmu,) = torch.autograd.grad(mu, weight, one, retain_graph=True)
        (dnu,) = torch.autograd.grad(nu, weight, one, retain_graph=True)
        with torch.no_grad():
            borrowed = [_compensated(lag, weight) for lag in self.past]
        mean, var = _combined([(mu, nu), *borrowed])
        now = Lag(mu.detach(), nu.detach(), dmu, dnu, weight.detach().clone())
        self.past = [now, *self.past][: self.window - 1]
        self._track(now, input.numel() // len(mu))
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift.view(-1, 1, 1), input, scale.view(-1, 1, 1))

    @torch.no_grad()
    def _track(self, now: Lag, values: int) -> None:
        """Move the running statistics towards those of the batch."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        unbiased = (now.nu - now.mu.square()) * (values / (values - 1))
        self.running_mean.lerp_(now.mu, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)

    def history_bytes(self) -> int:
        """What is remembered."""
        return sum(t.untyped_storage().nbytes() for lag in self.past for t in lag)


def _compensated(lag: Lag, weight: Tensor) -> tuple[Tensor, Tensor]:
    change = weight - lag.weight
    dims = tuple(range(1, change.dim()))
    return lag.mu + (lag.dmu * change).sum(dims), lag.nu + (lag.dnu * change).sum(dims)


def _combined(moments: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of the window, over the iterations whose variance is not negative."""
    mu, nu = (torch.stack(values) for values in zip(*moments, strict=True))
    valid = (nu >= mu.square()).to(mu)
    count = valid.sum(0)
    mean = (mu * valid).sum(0) / count
    return mean, (nu * valid).sum(0) / count - mean.square()


def converted(model: nn.Module, window: int, example: Tensor) -> nn.Module:
    """A copy of a net of batch norm with these layers, whose sources ``renorm.convert`` finds."""
    pairs = renorm.summary(
        renorm.convert(copy.deepcopy(model), to="cross_iteration", example=example)
    ).rows
    made = copy.deepcopy(model)
    for row in pairs:
        norm, source = made.get_submodule(row.name), made.get_submodule(row.source)
        assert type(norm) is nn.BatchNorm2d
        assert isinstance(source, nn.Conv2d)
        norm.__class__ = OfficialCrossIteration
        assert isinstance(norm, OfficialCrossIteration)
        norm.window, norm.past, norm.source = window, [], (source,)
    return made
