"""Training steps of the small models of ``networks``, and what became of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from support.networks import buffers, equal
from support.tolerance import bound

MODES = ["batch", "running"]


def rows(rank: int, step: int = 0, n: int = 5) -> Tensor:
    """The batch of a rank in a step."""
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(10 * step + rank))


def train(model: Any, x: Tensor) -> None:
    """A forward, and a backward with a random cotangent."""
    y = model(x)
    y.backward(torch.randn(y.shape))


def outcome(work: Callable[[], Any]) -> str:
    """The name and words of what is raised, or "fine"."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def attempt(model: Any, x: Tensor) -> tuple[str, bool]:
    """The outcome of a training step, and whether it left all buffers as they were."""
    before = buffers(model)
    return outcome(lambda: train(model, x)), equal(buffers(model), before)


def near(found: list[Tensor], exact: list[Tensor]) -> bool:
    """Whether tensors are equal, but for moments that went through float64."""
    for a, b in zip(found, exact, strict=True):
        error, size = float((a - b).detach().abs().max()), float(b.detach().abs().max())
        if error > bound(torch.float32, max(1.0, size)):
            return False
    return True
