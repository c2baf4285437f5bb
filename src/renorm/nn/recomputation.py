"""Remembering training forwards, so that activation checkpointing can repeat them exactly.

Checkpointing runs a forward a second time inside the backward pass. By then the running statistics
have moved on, so r and d would differ, and the gradient would be of another function. Each
forward that may be repeated therefore leaves its batch mean and the reference it used. A repeated
one is recognised by its batch mean and given that reference again. All on the device: nothing is
read by the host.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks

_KEPT = 64  # forwards of one layer between a forward and its backward; deep pipelines have 32

# in standard deviations: two batches differ by about 1/sqrt(values), a repeated one by rounding
_SAME = 1e-4


class Reference(NamedTuple):
    """What r and d are taken against: running statistics and the number of updates so far."""

    mean: Tensor
    var: Tensor
    step: Tensor | float


class Memory:
    """The recent training forwards of one layer that may be repeated."""

    def __init__(self) -> None:
        self._entries: deque[tuple[Tensor, Reference]] = deque(maxlen=_KEPT)

    def is_empty(self) -> bool:
        """Whether no forward is remembered; a method, as not every torch compiles __bool__."""
        return not self._entries

    def keep(self, batch_mean: Tensor, reference: Reference) -> None:
        """Remember a forward: its (G, C) batch means, and the reference it used."""
        mean, var, step = reference
        step = step.clone() if isinstance(step, Tensor) else step
        copy = Reference(mean.detach().clone(), var.detach().clone(), step)
        self._entries.appendleft((batch_mean.mean(0), copy))

    def find(self, batch_mean: Tensor, current: Reference) -> tuple[Reference, Tensor]:
        """The reference of the latest forward with these means, and whether there was one.

        Without one, this is a first forward that happens to run inside a backward pass, and the
        current reference is right.
        """
        mean = batch_mean.mean(0)
        alike = (mean.shape, mean.dtype, mean.device)
        kept = [(m, ref) for m, ref in self._entries if (m.shape, m.dtype, m.device) == alike]
        if not kept:
            return current, torch.zeros((), dtype=torch.bool, device=mean.device)
        sigma = torch.stack([ref.var for _, ref in kept]).to(mean.dtype).clamp(min=0).sqrt()
        apart = (torch.stack([m for m, _ in kept]) - mean).abs()
        distance = (apart / (sigma + torch.finfo(mean.dtype).tiny)).amax(1)
        distance = distance.nan_to_num(nan=float("inf"))
        nearest = distance.argmin(0, keepdim=True)  # the latest of equal ones
        found = distance.min() <= _SAME

        def pick(field: int, now: Tensor | float) -> Tensor:
            # a number would lose digits in the default dtype
            dtype = torch.float64 if isinstance(now, float) else None
            then = torch.stack(
                [torch.as_tensor(ref[field], dtype=dtype, device=mean.device) for _, ref in kept]
            )
            return torch.where(found, then.index_select(0, nearest).squeeze(0), now)

        return Reference(*(pick(i, now) for i, now in enumerate(current))), found


def in_backward() -> bool:
    """Whether autograd is running a backward pass: a forward here is likely a repeated one."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def may_be_repeated() -> bool:
    """Whether this forward may run inside a checkpoint.

    A non-reentrant checkpoint installs hooks on saved tensors, a reentrant one runs without grad.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return not torch.is_grad_enabled() or _top_saved_tensors_default_hooks(False) is not None
