"""A registered op that copies statistics before a layer writes them.

A compiler may keep a buffer for the backward pass instead of what was computed from it, and
compute r and d again there, after the layer has written the buffer: inductor in torch 2.13 does,
and its gradients are then wrong without a word. It does not repeat an op it does not know.

Activation checkpointing does repeat it, and compiled code cannot look up which forward is being
repeated. So the op refuses to run inside a backward pass: no gradient is better than a wrong one.
"""

import torch
from torch import Tensor, library

from renorm.errors import RenormError

_LIBRARY = library.Library("renorm", "DEF")
_LIBRARY.define("snapshot(Tensor mean, Tensor var, Tensor step) -> (Tensor, Tensor, Tensor)")


@library.impl(_LIBRARY, "snapshot", "CompositeExplicitAutograd")
def _snapshot(mean: Tensor, var: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if torch._C._current_graph_task_id() != -1:
        raise RenormError(
            "A compiled batch renorm layer is being run again inside a backward pass, by "
            "activation checkpointing: its running statistics have moved on since, and the "
            "gradient would be wrong. Checkpoint without compiling, compile without "
            "checkpointing, or keep the norm layers out of the compiled code with "
            "torch.compiler.disable(layer.forward)."
        )
    return mean.clone(), var.clone(), step.clone()


@library.register_fake("renorm::snapshot", lib=_LIBRARY)
def _fake(mean: Tensor, var: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(mean), torch.empty_like(var), torch.empty_like(step)


def snapshot(mean: Tensor, var: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of three tensors that no compiler computes a second time."""
    return torch.ops.renorm.snapshot(mean, var, step)
