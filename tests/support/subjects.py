"""The layers under test, built for a case: ours by kernel and by rank, and torch's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import renorm
from renorm import limits
from renorm.kernels import cpu, cuda
from renorm.nn import BatchRenorm
from support.cases import Case, Inputs

OURS = {
    2: renorm.BatchRenorm1d,
    3: renorm.BatchRenorm1d,
    4: renorm.BatchRenorm2d,
    5: renorm.BatchRenorm3d,
}
LAZY = {
    2: renorm.LazyBatchRenorm1d,
    3: renorm.LazyBatchRenorm1d,
    4: renorm.LazyBatchRenorm2d,
    5: renorm.LazyBatchRenorm3d,
}
TORCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class Subject:
    """A way to build a layer for a case.

    Args:
        id: shown in test ids.
        build: a layer with the settings of the case, statistics and parameters not yet set.
        renormalizes: False for torch's batch norm, which agrees at limits (1, 0) alone and
            averages the variance.
        takes: whether this layer can serve the case at all.
        missing: why it cannot be tested in this installation, or None.
    """

    id: str
    build: Callable[[Case], Any]
    renormalizes: bool = True
    takes: Callable[[Case], bool] = lambda case: True
    missing: str | None = None


def settings(case: Case) -> dict:
    return {
        "eps": case.eps,
        "momentum": case.momentum,
        "affine": case.affine,
        "bias": case.bias,
        "dtype": case.parameter_dtype or case.dtype,
    }


def renorm_settings(case: Case) -> dict:
    return {"limits": limits.fixed(*case.limits), "microbatch": case.microbatch}


def of_class(cls: type[BatchRenorm]) -> Callable[[Case], nn.Module]:
    return lambda case: cls(case.shape[1], **settings(case), **renorm_settings(case))


def _by_rank(case: Case) -> nn.Module:
    return OURS[len(case.shape)](case.shape[1], **settings(case), **renorm_settings(case))


def _lazy(case: Case) -> nn.Module:
    layer = LAZY[len(case.shape)](**settings(case), **renorm_settings(case)).eval()
    with torch.no_grad():
        layer(torch.zeros(case.shape, dtype=case.dtype))
    return layer.train()


def _torch(case: Case) -> nn.Module:
    return TORCH[len(case.shape)](case.shape[1], **settings(case))


def _with_kernel(name: str) -> Callable[[Case], nn.Module]:
    return lambda case: BatchRenorm(
        case.shape[1], **settings(case), **renorm_settings(case), kernel=name
    )


def _plain(case: Case) -> bool:
    return not case.masked and (case.microbatch is None or case.microbatch >= case.shape[0])


AUTO = Subject("BatchRenormNd", _by_rank)
CPU = Subject("cpu kernel", _with_kernel("cpu"), takes=_plain, missing=cpu.MISSING)
CUDA = Subject(  # the battery lies on the cpu: it runs the device code where that is interpreted
    "cuda kernel",
    _with_kernel("cuda"),
    takes=lambda case: _plain(case) and case.offset != 1e2,  # interpreted: 1e4 is enough
    missing=cuda.unavailable(torch.device("cpu")),
)
ATEN = Subject("aten kernel", _with_kernel("aten"), takes=_plain)
COMPOSITE = Subject("composite kernel", _with_kernel("composite"))
LAZY_SUBJECT = Subject("LazyBatchRenormNd", _lazy)
BATCH_NORM = Subject("nn.BatchNormNd", _torch, renormalizes=False, takes=_plain)
SUBJECTS = [AUTO, CPU, CUDA, ATEN, COMPOSITE, LAZY_SUBJECT, BATCH_NORM]


def fill(layer: Any, t: Inputs) -> Any:
    """Give the layer the parameters and running statistics of the inputs."""
    with torch.no_grad():
        for name in ("running_mean", "running_var", "weight", "bias"):
            value, own = getattr(t, name), getattr(layer, name)
            if value is not None and own is not None:
                own.copy_(value)
    return layer


def step(layer: nn.Module, t: Inputs) -> tuple[Tensor, Tensor]:
    """A training forward and backward with the inputs' cotangent: ``(y, dx)``."""
    x = t.x.detach().requires_grad_()
    y = layer(x) if t.mask is None else layer(x, t.mask)
    y.backward(t.dy)
    assert x.grad is not None
    return y.detach(), x.grad
