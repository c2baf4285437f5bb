"""What a layer does to share statistics with the same layer in other processes."""

import sys
import zlib
from typing import Any, Literal

import torch
from torch import Tensor

from renorm import collectives
from renorm.collectives import Group
from renorm.errors import ArgumentError, ConversionError
from renorm.limits import Limits
from renorm.nn.deferral import is_ready

Sync = Literal["batch", "running"] | None
MODES = (None, "batch", "running")
AGREE_EVERY = 100  # steps after which processes make sure again that they are set up alike


def check_settings(sync: Any, process_group: Group, microbatch: int | None) -> None:
    """Refuse settings that contradict each other."""
    if sync not in MODES:
        raise ArgumentError(f"sync must be None, 'batch' or 'running', got {sync!r}.")
    if process_group is not None and sync is None:
        raise ArgumentError(
            f"process_group says among whom statistics are shared, got {process_group!r}, but "
            "sync=None shares none. Give sync='batch' or sync='running' too."
        )
    if sync == "batch" and microbatch is not None:
        raise ArgumentError(
            f"sync='batch' joins the examples of all processes, and microbatch={microbatch} "
            "normalizes those of one in groups. Give one of them, or sync='running'."
        )


def described(layer: Any) -> dict[str, str]:
    """Everything that processes must have alike, in words that can be compared."""
    if not is_ready(layer):
        return {"its first input": "has not come"}
    limits = layer.limits
    known = isinstance(limits, Limits)
    return {
        "the number of channels": str(layer.num_features),
        "eps": str(layer.eps),
        "momentum": str(layer.momentum),
        "limits": str(limits) if known else "a function",
        "the value of limits": repr(limits) if known else _value(layer),
        "num_batches_tracked": _fingerprint(layer.num_batches_tracked),
        "running_mean": _fingerprint(layer.running_mean),
        "running_var": _fingerprint(layer.running_var),
    }


def _value(layer: Any) -> str:
    """A schedule of the user's at the current step, called as the layer calls it."""
    step = layer.num_batches_tracked
    if step is None:
        step = 0
    r_max, d_max = layer.limits(int(step) if not isinstance(step, int) and step.is_cpu else step)
    return f"({float(r_max)}, {float(d_max)})"


def _fingerprint(t: Tensor | None) -> str:
    """Words that two tensors have in common if they hold the same bits."""
    if t is None:
        return "None"
    t = t.detach().cpu()
    if t.dim() == 0:
        return str(t.item())
    checksum = zlib.crc32(t.contiguous().view(torch.uint8).numpy().tobytes())
    return f"{t.dtype} of shape {tuple(t.shape)} with checksum {checksum:08x}"


def refuse_alone(layer: Any) -> None:
    """Refuse to train a layer that should share its statistics, and with whom nothing does."""
    if collectives.resolved(layer.process_group) is not None:
        raise ArgumentError(
            f"{type(layer).__name__} has sync='running', but no model that it is part of shares "
            "its running statistics, so those of the processes would diverge. Call "
            "renorm.distributed.sync_running(model) with the module whose forward you call, or "
            "unsync_running(model) to train it by itself."
        )


class LostToSyncBatchNorm:
    """An attribute that is read where a layer is about to be lost, and that it does not have.

    ``convert_sync_batchnorm`` of torch, which Lightning's ``sync_batchnorm=True`` calls, and of
    timm make an nn.SyncBatchNorm of everything that is a batch norm: ours would be gone without
    a word. They end by asking the layer for its ``qconfig``, so that is where it speaks.

    Args:
        lost: what of the layer would be lost, and what to do.
    """

    def __init__(self, lost: str) -> None:
        self._lost = lost

    def __get__(self, layer: Any, owner: type) -> Any:
        if layer is None:
            return self
        if sys._getframe(1).f_code.co_name == "convert_sync_batchnorm":
            raise ConversionError(
                f"convert_sync_batchnorm would replace {type(layer).__name__} by batch norm: "
                f"{self._lost}, and leave convert_sync_batchnorm (Lightning: sync_batchnorm=True) "
                "out, or call it before convert."
            )
        raise AttributeError(f"{type(layer).__name__!r} object has no attribute 'qconfig'")
