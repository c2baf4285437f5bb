"""The moving averages of gradients that a layer's backward passes keep, and their settings."""

from typing import Any, Literal

import torch

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
    if kernel == "cuda":
        raise ArgumentError(
            "backward='moving' is there in the kernels 'cpu', 'aten' and 'composite', got "
            f"kernel={kernel!r}. Leave kernel out."
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


def begun(layer: Any, device: torch.device) -> Averages:
    """Averages of nothing yet, for a layer with input on ``device``."""
    dtype = accumulation_dtype(layer.running_mean.dtype)
    values = torch.zeros(2, layer.num_features, dtype=dtype, device=device)
    return Averages(values, torch.zeros((), dtype=dtype, device=device), layer.backward_momentum)


def restart(averages: Averages) -> None:
    """Have them be of nothing yet, in place."""
    with torch.no_grad():
        averages.values.zero_()
        averages.passes.zero_()
