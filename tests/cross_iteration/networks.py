"""Small networks with cross-iteration layers, and steps of training them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import renorm
from renorm.nn import CrossIterationBatchNorm


def network(seed: int = 0, **settings: Any) -> Any:
    """Convolution, norm, ReLU, twice; converted with these settings."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.BatchNorm2d(6),
    )
    return renorm.convert(model, to="cross_iteration", **{"window": 4, **settings})


def norms(model: nn.Module) -> list[CrossIterationBatchNorm]:
    return [m for m in model.modules() if isinstance(m, CrossIterationBatchNorm)]


def batches(steps: int, seed: int = 1, examples: int = 3) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs, and cotangents of the outputs."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(examples, 2, 7, 7, generator=generator)
        yield x, torch.randn(examples, 6, 3, 3, generator=generator)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def trained(model: Any, optimizer: Any, data: Iterator[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Train; returns the outputs."""
    outputs = []
    for x, dy in data:
        optimizer.zero_grad()
        y = model(x)
        y.backward(dy.to(y.dtype))
        optimizer.step()
        outputs.append(y.detach().clone())
    return outputs


def state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters, buffers, and what the norms remember."""
    entries = model.state_dict().items()
    found = {name: t.detach().clone() for name, t in entries if isinstance(t, Tensor)}
    for i, norm in enumerate(norms(model)):
        found |= {f"{i}.{name}": t.clone() for name, t in norm._history.state().items()}
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
