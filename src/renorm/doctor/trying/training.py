"""A copy of the model in training, and how good it is then."""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from renorm.errors import ArgumentError
from renorm.measure import examples
from renorm.measure.quantity import number

Loss = Callable[[Any, Any], Any]
Forward = Callable[[nn.Module, Any], Any]


class Task(NamedTuple):
    """How to call a model, and ``(output, batch) -> loss``."""

    forward: Forward
    loss: Loss

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """The loss of a batch."""
        return self.loss(self.forward(model, batch), batch)


def train(
    model: nn.Module,
    batches: Iterable[Any],
    task: Task,
    optimizer: Optimizer,
    done: Callable[[], Any],
) -> float | None:
    """A step of training for each batch.

    Returns:
        The median time of a step in seconds; None where the loss was not finite, which ends it.
    """
    times = []
    for batch in batches:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = task(model, batch)
        loss.backward()
        optimizer.step()
        value = float(loss.detach())  # waits for the device
        times.append(time.perf_counter() - start)
        if not math.isfinite(value):
            return None
        done()
    return statistics.median(times)


@torch.no_grad()
def judge(model: nn.Module, batches: Sequence[Any], task: Task) -> float | None:
    """The mean loss over examples in eval mode; None where it is not finite."""
    model.eval()
    weights = [examples.count(batch) or 1 for batch in batches]
    losses = [number(task(model, batch)) for batch in batches]
    mean = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    return mean if math.isfinite(mean) else None


def check_loss(model: nn.Module, batch: Any, task: Task, trains: bool) -> None:
    """Refuse a loss that cannot be trained by.

    Raises:
        ArgumentError: it is no single number, or no gradient can be had of it.
    """
    with torch.set_grad_enabled(trains):
        value = task(model.eval(), batch)
    number(value)
    if trains and not (isinstance(value, Tensor) and value.requires_grad):
        what = "a tensor without a gradient" if isinstance(value, Tensor) else repr(value)
        raise ArgumentError(
            f"The loss has to be a tensor that training can go by, got {what}. Compute it from "
            "the output without detach(), item() or torch.no_grad(), or try "
            "fixes='calibrate' alone."
        )


def seed_all(model: nn.Module, seed: int) -> None:
    """Seed what forwards may draw from: Python, NumPy, and torch on the devices of the model."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for device in {t.device for t in (*model.parameters(), *model.buffers())}:
        if device.type not in ("cpu", "meta"):
            with torch.accelerator.device_index(device.index or 0):
                torch.get_device_module(device).manual_seed(seed)
