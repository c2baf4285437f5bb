"""Which kernel serves a call, and why.

An explicit request, the argument or else the environment variable RENORM_KERNEL, works or raises;
without one, the fastest kernel that takes the call is used.
"""

import os
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from renorm.errors import ArgumentError
from renorm.kernels import aten, composite, cpu, cuda
from renorm.kernels.call import Call, Outcome, finished
from renorm.kernels.cpu import operators
from renorm.kernels.exporting import is_exporting


class Choice(NamedTuple):
    """A kernel's name, and why it was chosen."""

    kernel: str
    reason: str


# for every call that names none; read once, so that no call pays for it
_REQUESTED = os.environ.get("RENORM_KERNEL") or None

_KERNELS = {"cpu": cpu, "cuda": cuda, "aten": aten, "composite": composite}
_FUSED = {"cpu": "fused in C, on torch's own threads", "cuda": "fused in Triton"}


def names() -> tuple[str, ...]:
    """The kernels there are, fastest first."""
    return tuple(_KERNELS)


def check_name(kernel: str | None) -> None:
    """Refuse a kernel that there is not; None is to have one chosen."""
    if kernel is not None and kernel not in _KERNELS:
        raise ArgumentError(
            f"There is no kernel {kernel!r}; there are {', '.join(_KERNELS)}. "
            "Pass None to have one chosen, and unset RENORM_KERNEL."
        )


def choose(call: Call, kernel: str | None = None) -> Choice:
    """The kernel for this call: the one asked for, or the fastest that takes it.

    Raises:
        ArgumentError: no such kernel, or the one asked for does not take this call.
    """
    kernel = kernel or _REQUESTED
    check_name(kernel)
    if kernel == "composite":
        return Choice(kernel, "asked for")
    obstacle = _obstacle(call)
    if kernel is not None:
        found = obstacle or _obstacle_of(kernel, call)
        if found is None:
            return Choice(kernel, "asked for")
        raise ArgumentError(
            f"The kernel {kernel!r} was asked for, but {found}. "
            "Pass kernel=None to have one chosen, and unset RENORM_KERNEL."
        )
    if obstacle is not None:
        return Choice("composite", obstacle)
    device = call.x.device.type  # a fused kernel has its device's name
    fused_obstacle = _obstacle_of(device, call)
    if fused_obstacle is None:
        return Choice(device, _FUSED[device])
    obstacle = _obstacle_of("aten", call)
    if obstacle is not None:
        return Choice("composite", obstacle)
    return Choice("aten", f"native operations on {device}: {fused_obstacle}")


def run(call: Call, kernel: str | None = None) -> Outcome:
    """Compute the call with the chosen kernel."""
    name = choose(call, kernel).kernel
    if name == "cpu" and torch.compiler.is_compiling():
        return operators.run(call)
    chosen = _KERNELS[name]
    outcome = chosen.run(call)
    if chosen.FUSES:
        return outcome
    return outcome._replace(y=finished(outcome.y, call))


def at_once(call: Call) -> Tensor | None:
    """The output of a valid in-place call of the most common kind; None if it is another.

    The same as all checks, ``choose`` and ``run``, in a fraction of their time.
    """
    return None if _REQUESTED else cpu.at_once(call)


def batch_mean(call: Call, kernel: str | None = None) -> Tensor:
    """The batch means that ``run`` would compute for this call."""
    return _KERNELS[choose(call, kernel).kernel].batch_mean(call)


def _obstacle_of(kernel: str, call: Call) -> str | None:
    """Why this kernel cannot take a call of plain tensors, or None if it can."""
    if call.group is not None and kernel in _FUSED:
        return "processes exchange their statistics half-way"
    if call.averages is not None and (kernel == "cuda" or torch.compiler.is_compiling()):
        return "its backward pass takes moving averages"
    return _KERNELS[kernel].obstacle(call)


def _obstacle(call: Call) -> str | None:
    """Why the composite kernel alone can take this call, or None if others may."""
    if torch.compiler.is_compiling() and (call.x.device.type != "cpu" or is_exporting()):
        return "the compiler fuses plain operations itself"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if call.x.device.type not in ("cpu", "cuda"):
        return f"the native operations are not there on {call.x.device.type}"
    if type(call.x) not in (Tensor, torch.nn.Parameter):
        return f"the input is a tensor subclass ({type(call.x).__name__})"
    return None
