"""Moments alone, and normalization by given statistics, in C."""

import torch
from torch import Tensor

from renorm.kernels import cpu, layout
from renorm.kernels.layout import Sizes

Given = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # mean, var, r and d, (C,) each

_NEUTRAL = False, None, None  # relu, mask and residual
# no running statistics, old and new, and no counter; r_max, d_max and momentum of them
_FORGETS = None, None, None, None, None, 1.0, 0.0, 0.0


def sizes(x: Tensor, *vectors: Tensor | None) -> Sizes | None:
    """The sizes of x if it and the vectors (C,) can be read as they lie, else None."""
    if (
        cpu.MISSING is not None
        or not cpu.native.readable(x, *vectors)
        or torch._C._len_torch_dispatch_stack()
    ):
        return None
    return layout.sizes(x)


def moments(x: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of x."""
    saved = cpu.EMPTY[x.dtype]((cpu.STATISTICS, sizes[2]))
    cpu.native.forward(
        x, *sizes, sizes[1], *_NEUTRAL, None, saved, None, None, *_FORGETS, 0.0, *cpu.NOT_GIVEN
    )
    return saved[0], saved[2]


def forward(
    x: Tensor, sizes: Sizes, weight: Tensor | None, bias: Tensor | None, given: Given, eps: float
) -> tuple[Tensor, Tensor]:
    """z, and what a backward reads: (5, C), the mean, what rounding took from it, var, r and d."""
    saved = cpu.EMPTY[x.dtype]((cpu.STATISTICS, sizes[2]))
    z = torch.empty_like(x)
    cpu.native.forward(
        x, *sizes, sizes[1], *_NEUTRAL, z, saved, weight, bias, *_FORGETS, eps, *given
    )
    return z, saved


def gradients(
    dz: Tensor,
    x: Tensor,
    sizes: Sizes | None,
    weight: Tensor | None,
    saved: Tensor,
    share: float,
    eps: float,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias that are needed, in the dtypes computed in."""
    kept = cpu.Kept(x, weight, None, None, None, saved, None, False, False, eps, share)
    return cpu.gradients(dz, kept, (*needs, False), sizes)[:3]
