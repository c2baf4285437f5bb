"""The moving averages of gradients that a layer's backward passes keep, and their settings."""

from typing import Any, Literal

import torch
from torch import Tensor

from renorm.errors import ArgumentError
from renorm.kernels import Averages, accumulation_dtype

Backward = Literal["batch", "moving"]


def check_settings(
    backward: Any, momentum: Any, kernel: str | None, sync: str | None, tracks: bool
) -> None:
    """Refuse settings outside their ranges, and what moving averages do not go with."""
    if backward not in ("batch", "moving"):
        raise ArgumentError(f"backward must be 'batch' or 'moving', got {backward!r}.")
    if not isinstance(momentum, int | float) or not 0 < momentum <= 1:
        raise ArgumentError(
            "backward_momentum is the update rate of the gradients' averages, above 0 to 1, got "
            f"{momentum!r}."
        )
    if backward == "batch":
        return
    if kernel not in (None, "composite"):
        raise ArgumentError(
            f"backward='moving' is there in the kernel 'composite' alone, got kernel={kernel!r}. "
            "Leave kernel out."
        )
    if sync == "batch":
        raise ArgumentError(
            "backward='moving' removes averages of this process's own gradients, and sync='batch' "
            "makes one batch of those of all. Give one of them, or sync='running'."
        )
    if not tracks:
        raise ArgumentError(
            "backward='moving' is the gradient of normalizing by running statistics, and with "
            "track_running_stats=False there are none. Give one of them."
        )


def begun(x: Tensor, momentum: float) -> Averages:
    """Averages of nothing yet, for gradients of the normalized ``x``."""
    dtype = accumulation_dtype(x.dtype)
    values = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
    return Averages(values, torch.zeros((), dtype=dtype, device=x.device), momentum)


def fit(values: Tensor, x: Tensor) -> bool:
    """Whether averages can go on with gradients of this ``x``."""
    return values.dtype == accumulation_dtype(x.dtype) and values.device == x.device
