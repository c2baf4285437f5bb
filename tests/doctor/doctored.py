"""Models, batches and findings that diagnoses are made of."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from renorm.findings import Figure, Finding
from renorm.measure.records import Survey
from support.snapshots import everything


def model(width: int = 3) -> Any:
    """Rows through two normalization layers, in float64, with statistics that are off."""
    made = nn.Sequential(
        nn.Linear(width, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 4),
        nn.BatchNorm1d(4), nn.Linear(4, 2),
    ).double()  # fmt: skip
    made[1].get_buffer("running_mean").add_(0.5)
    return made


def rows(count: int = 6, size: int = 8, width: int = 3) -> list[Tensor]:
    """Batches (N, width) in float64."""
    generator = torch.Generator().manual_seed(1)
    shape = (size, width)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def loss(output: Any, batch: Any) -> Tensor:
    """A number of the output."""
    return output.square().mean()


def state(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> tuple:
    """All that a diagnosis has to leave as it was, in comparable form."""
    gradients = [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in _all(model)]
    hosts = random.getstate(), [str(part) for part in np.random.get_state()]
    learning = [p.requires_grad for p in _all(model)]
    modes = [module.training for module in model.modules()]
    steps = None if optimizer is None else _plain(optimizer.state_dict())
    switches = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return everything(model), gradients, hosts, learning, modes, steps, switches


def finding(severity: str = "warning", **entries: Any) -> Finding:
    """One that says little."""
    return Finding(
        **{
            "id": "stale_statistics",
            "severity": severity,
            "title": "Running statistics are 2.5 deviations off",
            "layers": ("1", "5"),
            "evidence": (Figure("1", "shift", 2.5, 1.0),),
            "meaning": "Eval mode normalizes by other numbers than training.",
            "threshold": "One deviation.",
            "advice": "Calibrate the model.",
            "code": "renorm.calibrate(model, batches)",
            "gain": "The loss in eval mode falls by 0.2.",
            **entries,
        }
    )


def surveyed(**entries: Any) -> Survey:
    """A survey without records."""
    return Survey(
        **{
            "model": "Net",
            "training": True,
            "depth": "standard",
            "seed": 0,
            "batches": 4,
            "examples": 32,
            "complete": True,
            "interrupted": False,
            "records": (),
            **entries,
        }
    )


def _all(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
