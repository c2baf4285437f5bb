"""How the values of a tensor lie in memory, as kernels that take addresses see them."""

import torch
from torch import Tensor

# whether the C channels of a position lie together, and N, C, S
Sizes = tuple[bool, int, int, int]


def sizes(x: Tensor, microbatch: int | None = None) -> Sizes | None:
    """The sizes of x (N, C, *spatial) if its memory is (N, C, S) or (N, S, C), else None.

    Two-dimensional transposed input is one plane of N values a channel, unless microbatches cut it.
    """
    if x.is_neg():
        return None
    shape = x.shape
    n, c, rank = shape[0], shape[1], len(shape)
    if x.is_contiguous():
        return False, n, c, x.numel() // (n * c)
    if rank == 2:
        return (False, 1, c, n) if microbatch is None and x.t().is_contiguous() else None
    if x.stride(1) != 1:
        return None
    if rank == 3:
        rows = x.transpose(1, 2).is_contiguous()
    elif rank == 4:
        rows = x.is_contiguous(memory_format=torch.channels_last)
    else:
        rows = rank == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
    return (True, n, c, x.numel() // (n * c)) if rows else None


def is_last_derivative(dy: Tensor) -> bool:
    """Whether plain numbers are asked for: nothing will differentiate or batch this backward."""
    return (
        not torch.is_grad_enabled()
        and type(dy) is Tensor
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._has_storage(dy)  # a batch of gradients has none
        and not dy._is_zerotensor()
    )
