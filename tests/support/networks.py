"""Small models of batch norms, trained a little."""

from typing import Any

import torch
from torch import nn

from renorm import limits
from renorm.distributed import sync_running
from renorm.nn import BatchRenorm


def trained(layer, shape=(8, 4), steps=3):
    """The layer after some training steps, in eval mode, with parameters off their start."""
    layer.train()
    for _ in range(steps):
        layer(torch.randn(shape) * 3 + 1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


def network() -> Any:
    """Images (N, 3, 9, 9) through three batch norms, at ``1``, ``3.0.1`` and ``4``."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), nn.ReLU()),
        nn.BatchNorm2d(4),
    )


def sequential(*layers) -> Any:
    """nn.Sequential, for type checkers any module."""
    return nn.Sequential(*layers)


def table(**children) -> Any:
    """nn.ModuleDict, for type checkers any module."""
    return nn.ModuleDict(children)


def state(model):
    """A copy of the state_dict."""
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(left, right):
    """Whether two states have the same keys and bitwise the same tensors."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def statistics(model) -> list[torch.Tensor]:
    """Copies of all running means and variances, in order."""
    buffers = model.named_buffers()
    return [b.clone() for name, b in buffers if not name.endswith("num_batches_tracked")]


def assert_same(left, right):
    """Equal tensors one by one, to the rounding of float64."""
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def renormed(channels=4, **settings) -> Any:
    """Rows (N, 3) through two batch renorms, at ``1`` and ``4``, to (N, 2)."""
    settings = {"limits": limits.fixed(1.5, 0.4), "momentum": 0.1} | settings
    return nn.Sequential(
        nn.Linear(3, channels),
        BatchRenorm(channels, **settings),
        nn.ReLU(),
        nn.Linear(channels, 2),
        BatchRenorm(2, **settings),
    )


def sharing(sync, group=None, **settings) -> Any:
    """``renormed`` whose layers share what ``sync`` says with the processes of the group."""
    if sync == "running":
        return sync_running(renormed(**settings), group)
    return renormed(**settings, sync=sync, process_group=group)


def buffers(model) -> list[torch.Tensor]:
    """Copies of all buffers as they are now, whatever is under way."""
    return [b.clone() for b in model.buffers()]


def equal(left, right) -> bool:
    """Whether two lists hold the same tensors, bit for bit."""
    return len(left) == len(right) and all(
        torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )
