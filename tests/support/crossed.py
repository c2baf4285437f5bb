"""Layers with a cross-iteration norm behind them, and the reference run beside them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import renorm
from renorm import reference
from renorm.nn import CrossIterationBatchNorm


@dataclass(frozen=True)
class Case:
    """A source, its input, and how the reference reads that."""

    name: str
    source: Callable[[], Any]
    shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    read: dict[str, Any] = field(default_factory=dict)
    pad: tuple[list[tuple[int, int]], str] | None = None  # what the reference is given padded

    def __str__(self) -> str:
        return self.name

    def patches(self, x: Tensor) -> np.ndarray:
        """The patches of x (N, C, *spatial), by the reference."""
        maps = x.detach().numpy()
        if self.pad is not None:
            widths, mode = self.pad
            maps = np.pad(maps, [(0, 0), (0, 0), *widths], mode=mode)  # type: ignore[call-overload]
        return reference.as_patches(maps, self.kernel, **self.read)


CASES = [
    Case("linear", lambda: nn.Linear(5, 4), (3, 5)),
    Case("linear_without_bias", lambda: nn.Linear(5, 4, bias=False), (7, 5)),
    Case("conv1d", lambda: nn.Conv1d(2, 3, 4, stride=2, padding=1), (3, 2, 9), (4,),
         {"stride": 2, "padding": 1}),
    Case("conv2d", lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 6), (3, 3), {"padding": 1}),
    Case("many_positions", lambda: nn.Conv2d(2, 4, 3, stride=(1, 2)), (8, 2, 9, 8), (3, 3),
         {"stride": (1, 2)}),
    Case("conv2d_1x1", lambda: nn.Conv2d(3, 6, 1, bias=False), (2, 3, 4, 4), (1, 1)),
    Case("dilated", lambda: nn.Conv2d(2, 3, (3, 2), dilation=(2, 3), padding=(2, 1)), (3, 2, 6, 7),
         (3, 2), {"dilation": (2, 3), "padding": (2, 1)}),
    Case("grouped", lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5), (3, 3),
         {"groups": 2, "padding": 1}),
    Case("depthwise", lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 6, 5), (3, 3),
         {"groups": 4}),
    Case("conv3d", lambda: nn.Conv3d(2, 3, 2, padding=1, stride=(1, 2, 1)), (2, 2, 3, 4, 3),
         (2, 2, 2), {"padding": 1, "stride": (1, 2, 1)}),
    Case("same_padding", lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 2, 5, 6), (2, 4),
         pad=([(0, 1), (1, 2)], "constant")),
    Case("reflect", lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 6),
         (3, 3), pad=([(1, 1), (1, 1)], "reflect")),
    Case("replicate", lambda: nn.Conv1d(2, 3, 5, padding=2, padding_mode="replicate"), (3, 2, 7),
         (5,), pad=([(2, 2)], "edge")),
    Case("circular", lambda: nn.Conv3d(1, 2, 3, padding=1, padding_mode="circular"),
         (2, 1, 3, 4, 3), (3, 3, 3), pad=([(1, 1)] * 3, "wrap")),
]  # fmt: skip

COMPENSATE = {
    "none": partial(reference.centred_first_order, rho=0.0),
    "first_order": partial(reference.centred_first_order, expand="sigma"),
    "exact": reference.centred_exact,
}
_NORMS = {
    2: renorm.CrossIterationBatchNorm1d,
    3: renorm.CrossIterationBatchNorm1d,
    4: renorm.CrossIterationBatchNorm2d,
    5: renorm.CrossIterationBatchNorm3d,
}


def paired(case: Case, **settings: Any) -> tuple[Any, CrossIterationBatchNorm]:
    """A source and its norm, in float64, with random weights."""
    source = case.source().double()
    channels = source.weight.shape[0]
    norm = _NORMS[len(case.shape)](channels, dtype=torch.float64, **settings)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    norm.attach(source)
    return source, norm


def rows(t: Tensor) -> np.ndarray:
    """(N, C, *spatial) as the (m, C) of the reference."""
    return t.detach().movedim(1, -1).reshape(-1, t.shape[1]).numpy()


class Beside:
    """The reference, stepped with the weights that a source and a norm have."""

    def __init__(self, case: Case, source: Any, norm: CrossIterationBatchNorm) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self.case, self.source, self.norm = case, source, norm
        self.state = reference.CrossIterationState(
            (), norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
        )

    def step(self, x: Tensor, dz: Tensor, compensation: str | None = None) -> dict[str, np.ndarray]:
        """One iteration: the output, all gradients but that of the patches, and the averages."""
        norm = self.norm
        weight = self.source.weight.detach().flatten(1).numpy()
        bias = None if self.source.bias is None else self.source.bias.detach().numpy().copy()
        gamma, beta = norm.weight.detach().numpy().copy(), norm.bias.detach().numpy().copy()
        patches = self.case.patches(x)
        assert norm.momentum is not None
        step, self.state = reference.cross_iteration_step(
            patches,
            weight.copy(),
            bias,
            gamma,
            beta,
            self.state,
            window=norm.window,
            burn_in=norm.burn_in,
            momentum=norm.momentum,
            eps=norm.eps,
            compensate=COMPENSATE[compensation or norm.compensation],
            average=reference.centred_window,
            follow=norm.follow,
        )
        dy, dgamma, dbeta = reference.cross_iteration_norm_backward(
            rows(dz), step.y, step.mu_bar, step.var_bar, step.k, gamma, norm.eps
        )
        _, dweight, dbias = reference.linear_backward(dy, patches, weight)
        found = {
            "z": step.z,
            "dweight": dweight,
            "dgamma": dgamma,
            "dbeta": dbeta,
            "running_mean": self.state.mean,
            "running_var": self.state.var,
        }
        return found if bias is None else {**found, "dbias": dbias}


def measured(source: Any, norm: CrossIterationBatchNorm, x: Tensor, dz: Tensor) -> dict[str, Any]:
    """The same by the layers; gradients are left in the parameters."""
    for p in (*source.parameters(), *norm.parameters()):
        p.grad = None
    z = norm(source(x))
    z.backward(dz)
    found: dict[str, Any] = {
        "z": rows(z),
        "dweight": source.weight.grad.flatten(1).numpy(),
        "dgamma": as_array(norm.weight.grad),
        "dbeta": as_array(norm.bias.grad),
        "running_mean": as_array(norm.running_mean),
        "running_var": as_array(norm.running_var),
    }
    return found if source.bias is None else {**found, "dbias": as_array(source.bias.grad)}


def as_array(t: Tensor | None) -> np.ndarray:
    """A tensor that is there, as an array."""
    assert t is not None
    return t.detach().numpy()


def assert_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-11) -> None:
    """Within ``tolerance`` of the largest expected magnitude, at least 1."""
    for name, value in expected.items():
        scale = max(1.0, float(np.abs(value).max()))
        error = float(np.abs(found[name] - value).max())
        assert error <= tolerance * scale, f"{name}: {error} of {scale}"


def drift(source: Any, size: float = 0.1) -> None:
    """Change the weights as a step of an optimizer does."""
    with torch.no_grad():
        for p in source.parameters():
            p.add_(size * torch.randn(p.shape, dtype=p.dtype))
