"""Batch Renormalization with moving averages in the backward pass.

The forward pass is Algorithm 1 of Ioffe 2017 (arXiv 1702.03275) on groups of values. Backward, the
means that a group would lose of its own gradient are replaced by moving averages over passes, the
idea of Yan et al. 2020 (ICLR, Towards Stabilizing Batch Statistics in Backward Propagation).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from renorm.reference.shapes import Array


class GradientAverages(NamedTuple):
    """Averages of the gradient dy of y, and how many backward passes they are of."""

    mean: Array  # (C,), of dy
    slope: Array  # (C,), of dy * x_hat
    passes: int


class MovingBackward(NamedTuple):
    """The derivatives of a pass, and the averages after it."""

    dx: list[Array]  # (m_g, C) each
    dgamma: Array  # (C,)
    dbeta: Array  # (C,)
    averages: GradientAverages


def batch_renorm_moving_backward(
    dy: Sequence[Array],
    x: Sequence[Array],
    gamma: Array,
    r: Sequence[Array],
    d: Sequence[Array],
    averages: GradientAverages,
    *,
    rate: float,
    eps: float,
    own: bool = False,
) -> MovingBackward:
    """The backward pass of one step on groups of values, x (m_g, C) each.

    The averages move first, by ``max(rate, 1 / passes)``, and are then what each group loses.

    Args:
        dy: gradients of y, as x.
        x: values of each group.
        gamma: (C,).
        r, d: (C,) for each group, as the forward pass had them.
        averages: before this pass.
        rate: above 0 to 1.
        eps: inside the root.
        own: whether the groups lose their own means after all, as where limits are (1, 0).
    """
    values = sum(map(len, x))
    sigma_B = [np.sqrt(eps + x_g.var(axis=0)) for x_g in x]
    z = [(x_g - x_g.mean(axis=0)) / s for x_g, s in zip(x, sigma_B, strict=True)]
    x_hat = [z_g * r_g + d_g for z_g, r_g, d_g in zip(z, r, d, strict=True)]
    dbeta = np.sum([dy_g.sum(axis=0) for dy_g in dy], axis=0)
    dgamma = np.sum([(dy_g * h).sum(axis=0) for dy_g, h in zip(dy, x_hat, strict=True)], axis=0)

    passes = averages.passes + 1
    step = max(rate, 1 / passes)
    mean = averages.mean + step * (dbeta / values - averages.mean)
    slope = averages.slope + step * (dgamma / values - averages.slope)

    dx = []
    for dy_g, z_g, r_g, s in zip(dy, z, r, sigma_B, strict=True):
        m1 = dy_g.mean(axis=0) if own else mean
        m2 = (dy_g * z_g).mean(axis=0) if own else slope
        dx.append(gamma * r_g / s * (dy_g - m1 - z_g * m2))
    return MovingBackward(dx, dgamma, dbeta, GradientAverages(mean, slope, passes))
