"""Cross-Iteration Batch Normalization as a pure function."""

from torch import Tensor

from renorm.errors import ArgumentError
from renorm.kernels import borrowed, window

__all__ = ["cross_iteration_batch_norm"]


def cross_iteration_batch_norm(
    x: Tensor,
    borrowed_mean: Tensor,
    borrowed_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize by the statistics of a batch and of L earlier iterations; nothing is remembered.

    Per channel, with k = L + 1 and mu_0, var_0 (biased) of x::

        mean = (mu_0 + sum mu_i) / k
        var = (var_0 + sum max(var_i, 0)) / k + ((mu_0 - mean)^2 + sum (mu_i - mean)^2) / k
        y = weight * (x - mean) / sqrt(var + eps) + bias

    The gradient goes through x and its own part of the statistics, which is 1/k of them; the
    borrowed ones are constants. They are those of earlier batches at the weights of now, which the
    layers, ``renorm.CrossIterationBatchNorm2d`` and its likes, know how to get.

    Args:
        x: (N, C, *spatial), floating point, not empty.
        borrowed_mean: (C, L); with L = 0 this is batch norm.
        borrowed_var: (C, L).
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        eps: added to the variance inside the root, above 0.

    Returns:
        ``(y, mean, var)``; y has the dtype and memory format of x, mean and var are (C,), in
        float32 at least, without gradient.

    Raises:
        ArgumentError: an argument outside the ranges above.

    Source: Yao et al. 2020 (arXiv 2002.05712), section 3.2.

    >>> import torch
    >>> x, ones = torch.tensor([[1.0], [3.0]]), torch.ones(1, 1)
    >>> y, mean, var = cross_iteration_batch_norm(x, 4 * ones, ones)
    >>> mean, var  # of 1, 3 and of a batch with mean 4 and variance 1
    (tensor([3.]), tensor([2.]))
    """
    _check(x, borrowed_mean, borrowed_var, weight, bias, eps)
    own_mean, own_var = window.moments(x)
    means, variances = (t.detach().to(own_mean.dtype) for t in (borrowed_mean, borrowed_var))
    k = borrowed_mean.shape[1] + 1
    weights = own_mean.new_full((k,), 1 / k)
    mean, var = borrowed.combined(own_mean, own_var, means, variances.clamp(min=0), weights)
    return window.normalize(x, mean, var, weight, bias, share=1 / k, eps=eps), mean, var


def _check(
    x: Tensor,
    borrowed_mean: Tensor,
    borrowed_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> None:
    if x.dim() < 2 or not x.is_floating_point() or x.numel() == 0:
        raise ArgumentError(
            f"x must be floating point of shape (N, C, *spatial) and not empty, got {x.dtype} of "
            f"shape {tuple(x.shape)}."
        )
    C, shape = x.shape[1], borrowed_mean.shape
    if borrowed_mean.dim() != 2 or shape[0] != C or borrowed_var.shape != shape:
        raise ArgumentError(
            f"borrowed_mean and borrowed_var must be (C, L) = ({C}, L), one column an iteration, "
            f"got {tuple(shape)} and {tuple(borrowed_var.shape)}."
        )
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and tuple(t.shape) != (C,):
            raise ArgumentError(f"{name} must have shape ({C},), got {tuple(t.shape)}.")
    if not eps > 0:
        raise ArgumentError(f"eps must be positive, got {eps}.")
    devices = {
        str(t.device) for t in (x, borrowed_mean, borrowed_var, weight, bias) if t is not None
    }
    if len(devices) > 1:
        raise ArgumentError(f"All tensors must be on one device, got {', '.join(sorted(devices))}.")
