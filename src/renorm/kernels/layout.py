"""What kernels that take addresses see of a tensor: whether they can read it, and how it lies."""

import torch
from torch import Tensor

from renorm.kernels.call import Call

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # in the order of the C code
PLAIN = (Tensor, torch.nn.Parameter)

# whether the C channels of a position lie together, and N, C, S
Sizes = tuple[bool, int, int, int]


def unreadable(call: Call) -> str | None:
    """Why the tensors of a call cannot be read at their addresses, or None if they can."""
    if call.x.dtype not in DTYPES:
        return f"it has no code for {call.x.dtype}"
    for t in (call.weight, call.bias, call.running_mean, call.running_var):
        if t is not None and (type(t) not in PLAIN or t.dtype not in DTYPES):
            return "a parameter or statistic is not a plain floating-point tensor"
    for t in (call.mask, call.residual):
        if t is not None and type(t) not in PLAIN:
            return f"the mask or residual is a tensor subclass ({type(t).__name__})"
    if torch.compiler.is_compiling():  # there it is one operator
        return None
    if torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        return "operations are being recorded, and this would not be one"
    if any(t is not None and t._is_zerotensor() for t in (*call[:5], call.residual)):
        return "a tensor of zeros has no memory to read"
    return None


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
        and not is_batch(dy)
        and not dy._is_zerotensor()
    )


def is_batch(dy: Tensor) -> bool:
    """Whether this stands for a batch of gradients, by ``is_grads_batched=True``."""
    return type(dy) is Tensor and not (torch._C._has_storage(dy) or dy._is_zerotensor())
