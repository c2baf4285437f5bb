"""Batch norm followed by noise whose distribution changes at every step."""

import torch
from torch import Tensor
from torch.nn import functional as F

from renorm.errors import ArgumentError
from renorm.nn.normalizers.base import check_count
from renorm.nn.normalizers.running import RunningNormalizer


class NoisyBatchNorm(RunningNormalizer):
    """Batch norm, and in training noise of a new mean and scale per step and channel after it.

    In each training forward, for each channel j and then for each example i::

        mu_j ~ U(-n_mu, n_mu),                  sigma_j ~ U(1, n_sigma)
        m_ij ~ U(mu_j - r_mu, mu_j + r_mu),     s_ij ~ N(sigma_j, r_sigma)
        y_ij = s_ij * batch_norm(x)_ij + m_ij

    So the distribution that the next layer sees is another at every step: an internal covariate
    shift on purpose. Weight and bias of the batch norm come before the noise, and the noise is
    constant in the backward pass. A draw is for a whole map: all positions of a channel of an
    example share it. Eval is batch norm's eval, and the state is that of nn.BatchNorm; the noise
    takes no part in the running statistics. A batch with a non-finite statistic leaves them as
    they are.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance inside the root.
        momentum: update rate of the running statistics, 0 to 1; None for the average over all
            batches.
        n_mu: largest mean shift of a channel, at least 0.
        n_sigma: largest scale of a channel, at least 1.
        r_mu: largest shift of an example against that of its channel, at least 0.
        r_sigma: standard deviation of an example's scale about that of its channel, at least 0.
            The structure of the noise is the paper's; the defaults of these four are ours.
        affine: whether there are weight and bias.
        device, dtype: of parameters and buffers.
        generator: the noise is drawn from it, on its device; None for torch's own of the device
            of the input, the one that activation checkpointing restores.

    Source: Santurkar, Tsipras, Ilyas and Madry 2018 (arXiv 1805.11604), section 2.1.

    >>> layer, x = NoisyBatchNorm(4), torch.randn(8, 4)
    >>> bool((layer(x) == layer(x)).all()), bool((layer.eval()(x) == layer(x)).all())
    (False, True)
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        n_mu: float = 0.5,
        n_sigma: float = 1.25,
        r_mu: float = 0.1,
        r_sigma: float = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        statistics = {"running_mean": 0.0, "running_var": 1.0}
        super().__init__(num_features, eps, momentum, affine, device, dtype, statistics)
        for name, value, least in (
            ("n_mu", n_mu, 0), ("n_sigma", n_sigma, 1), ("r_mu", r_mu, 0), ("r_sigma", r_sigma, 0),
        ):  # fmt: skip
            if not least <= value < float("inf"):
                raise ArgumentError(f"{name} must be finite and at least {least}, got {value}.")
        self.n_mu, self.n_sigma, self.r_mu, self.r_sigma = n_mu, n_sigma, r_mu, r_sigma
        self.generator = generator

    def _normalized(self, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        # copies: a later step may move the buffers before the backward pass of this one
        mean, var = (b.to(x.dtype, copy=True) for b in (self.running_mean, self.running_var))
        if not self.training:
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)
        if x.numel() == 0:
            return self._scaled(x)
        check_count(self, x)
        # at a rate of 1 the copies become the statistics of this batch
        y = F.batch_norm(x, mean, var, weight, bias, True, 1.0, self.eps)
        self._track({"running_mean": mean, "running_var": var})
        scale, shift = self._noise(x)
        return scale * y + shift

    def _noise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A new scale and shift for each channel of each example, (N, C, 1, ...)."""
        (N, C), g = x.shape[:2], self.generator
        mu = x.new_empty(C).uniform_(-self.n_mu, self.n_mu, generator=g)
        sigma = x.new_empty(C).uniform_(1, self.n_sigma, generator=g)
        shift = mu + x.new_empty(N, C).uniform_(-self.r_mu, self.r_mu, generator=g)
        scale = sigma + x.new_empty(N, C).normal_(0, self.r_sigma, generator=g)
        shape = (N, C, *[1] * (x.dim() - 2))
        return scale.view(shape), shift.view(shape)

    def extra_repr(self) -> str:
        """The settings, as ``print(model)`` shows them."""
        return (
            f"{super().extra_repr()}, n_mu={self.n_mu}, n_sigma={self.n_sigma}, "
            f"r_mu={self.r_mu}, r_sigma={self.r_sigma}"
        )
