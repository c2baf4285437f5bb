"""Weight normalization as compared in Lubana, Dick and Tanaka 2021 (arXiv 2106.05956).

Weight Norm is that of Salimans and Kingma 2016 (arXiv 1602.07868), Scaled Weight Standardization
that of Brock, De and Smith 2021 (arXiv 2101.08692); both divide by ``... + eps`` as the 2021
code does. Symbols: W (C, K), a row of K weights for each of C filters; g (C,) gains; W_hat (C, K)
the weights that act; d_... derivatives of the loss. ``GAIN`` makes the ReLU of a unit Gaussian
have variance 1: its own is (pi - 1) / (2 pi), and its mean 1 / sqrt(2 pi).
"""

import numpy as np

from renorm.reference.shapes import Array

GAIN = np.sqrt(2 * np.pi / (np.pi - 1))


def weight_norm(W: Array, g: Array, eps: float) -> Array:
    """``W_hat = g * W / (||W|| + eps)``, the norm of each row."""
    norm = np.sqrt((W**2).sum(axis=1, keepdims=True))
    return g[:, None] * W / (norm + eps)


def weight_norm_backward(d_W_hat: Array, W: Array, g: Array, eps: float) -> tuple[Array, Array]:
    """Returns ``(d_W, d_g)``."""
    norm = np.sqrt((W**2).sum(axis=1, keepdims=True))
    along = (d_W_hat * W).sum(axis=1, keepdims=True)
    d_W = g[:, None] / (norm + eps) * (d_W_hat - W * along / (norm * (norm + eps)))
    return d_W, (along / (norm + eps))[:, 0]


def scaled_weight_standardization(W: Array, g: Array, eps: float) -> Array:
    """``W_hat = GAIN * g * (W - mean) / ((std + eps) * sqrt(K))``, std biased, of each row."""
    centred = W - W.mean(axis=1, keepdims=True)
    std = np.sqrt((centred**2).mean(axis=1, keepdims=True))
    return GAIN * g[:, None] * centred / ((std + eps) * np.sqrt(W.shape[1]))


def scaled_weight_standardization_backward(
    d_W_hat: Array, W: Array, g: Array, eps: float
) -> tuple[Array, Array]:
    """Returns ``(d_W, d_g)``."""
    K = W.shape[1]
    centred = W - W.mean(axis=1, keepdims=True)
    std = np.sqrt((centred**2).mean(axis=1, keepdims=True))
    scale = GAIN / ((std + eps) * np.sqrt(K))
    along = (d_W_hat * centred).sum(axis=1, keepdims=True)
    d_centred = g[:, None] * scale * (d_W_hat - centred * along / (K * std * (std + eps)))
    return d_centred - d_centred.mean(axis=1, keepdims=True), (scale * along)[:, 0]


def corrected_relu(x: Array) -> Array:
    """``GAIN * (relu(x) - 1 / sqrt(2 pi))``: of a unit Gaussian x, mean 0 and variance 1."""
    return GAIN * (np.maximum(x, 0) - 1 / np.sqrt(2 * np.pi))


def corrected_relu_backward(dy: Array, x: Array) -> Array:
    """Returns ``dx``."""
    return GAIN * dy * (x > 0)
