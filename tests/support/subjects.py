"""The layers under test, built for a case: ours by kernel and by rank, and torch's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import renorm
from renorm import limits
from renorm.kernels import cpu, cuda
from renorm.nn import BatchRenorm, NoisyBatchNorm
from support.cases import HALF, Case, Inputs

OURS = {
    2: renorm.BatchRenorm1d,
    3: renorm.BatchRenorm1d,
    4: renorm.BatchRenorm2d,
    5: renorm.BatchRenorm3d,
}
ACTIVATED = {
    2: renorm.BatchRenormAct1d,
    3: renorm.BatchRenormAct1d,
    4: renorm.BatchRenormAct2d,
    5: renorm.BatchRenormAct3d,
}
LAZY = {
    2: renorm.LazyBatchRenorm1d,
    3: renorm.LazyBatchRenorm1d,
    4: renorm.LazyBatchRenorm2d,
    5: renorm.LazyBatchRenorm3d,
}
CROSS_ITERATION = {
    2: renorm.CrossIterationBatchNorm1d,
    3: renorm.CrossIterationBatchNorm1d,
    4: renorm.CrossIterationBatchNorm2d,
    5: renorm.CrossIterationBatchNorm3d,
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
        activates: whether it serves the cases with something after the normalization, or those
            without.
        takes: whether this layer can serve such a case at all.
        missing: why it cannot be tested in this installation, or None.
    """

    id: str
    build: Callable[[Case], Any]
    renormalizes: bool = True
    activates: bool = False
    takes: Callable[[Case], bool] = lambda case: True
    missing: str | None = None

    def serves(self, case: Case) -> bool:
        """Whether the layer can be judged by this case."""
        return self.activates == case.followed and self.takes(case)


def settings(case: Case) -> dict:
    return {
        "eps": case.eps,
        "momentum": case.momentum,
        "affine": case.affine,
        "bias": case.bias,
        "dtype": case.parameter_dtype or case.dtype,
    }


def _without_bias(case: Case) -> dict:
    return {name: value for name, value in settings(case).items() if name != "bias"}


def renorm_settings(case: Case) -> dict:
    return {
        "limits": limits.fixed(*case.limits),
        "microbatch": case.microbatch,
        "backward": case.backward,
    }


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
    layer = TORCH[len(case.shape)](case.shape[1], **_without_bias(case))
    if not case.bias:  # not every torch has the keyword
        layer.register_parameter("bias", None)
    return layer


def _window_of_one(case: Case) -> nn.Module:
    """Batch norm, by the arithmetic of a window."""
    return CROSS_ITERATION[len(case.shape)](case.shape[1], **settings(case), window=1)


def _without_noise(case: Case) -> nn.Module:
    return NoisyBatchNorm(
        case.shape[1], **_without_bias(case), n_mu=0, n_sigma=1, r_mu=0, r_sigma=0
    )


def _activated(case: Case) -> nn.Module:
    act = nn.ReLU() if case.relu else nn.Identity()
    cls = ACTIVATED[len(case.shape)]
    return cls(case.shape[1], **settings(case), **renorm_settings(case), act=act)


def _watched(case: Case) -> nn.Module:
    layer: Any = _activated(case)
    layer.act.register_forward_hook(_nothing)
    return layer


def _nothing(*_: Any) -> None:
    return None


def _with_kernel(name: str) -> Callable[[Case], nn.Module]:
    return lambda case: BatchRenorm(
        case.shape[1], **settings(case), **renorm_settings(case), kernel=name
    )


def _whole(case: Case) -> bool:
    """Whether all values have statistics in common."""
    return not case.masked and (case.microbatch is None or case.microbatch >= case.shape[0])


def _plain(case: Case) -> bool:
    return _whole(case) and case.backward == "batch"


def rounded_once(case: Case) -> bool:
    """Whether the modules one by one are held to the bound of a single operation."""
    return not (case.residual and case.dtype in HALF)


AUTO = Subject("BatchRenormNd", _by_rank)
CPU = Subject("cpu kernel", _with_kernel("cpu"), missing=cpu.MISSING)
CUDA = Subject(  # the battery lies on the cpu: it runs the device code where that is interpreted
    "cuda kernel",
    _with_kernel("cuda"),
    takes=lambda case: _plain(case) and case.offset != 1e2,  # interpreted: 1e4 is enough
    missing=cuda.unavailable(torch.device("cpu")),
)
ATEN = Subject("aten kernel", _with_kernel("aten"), takes=_whole)
COMPOSITE = Subject("composite kernel", _with_kernel("composite"))
LAZY_SUBJECT = Subject("LazyBatchRenormNd", _lazy)
BATCH_NORM = Subject("nn.BatchNormNd", _torch, renormalizes=False, takes=_plain)
WINDOW_OF_ONE = Subject(
    "CrossIterationBatchNormNd of one", _window_of_one, renormalizes=False, takes=_plain
)
WITHOUT_NOISE = Subject(
    "NoisyBatchNorm without noise", _without_noise, renormalizes=False,
    takes=lambda case: _plain(case) and case.bias,
)  # fmt: skip
FUSED = Subject(
    "BatchRenormActNd", _activated, activates=True,
    takes=lambda case: (case.relu and cpu.MISSING is None) or rounded_once(case),
)  # fmt: skip
COMPOSED = Subject(
    "BatchRenormActNd composed", _watched, activates=True,
    takes=lambda case: case.relu and rounded_once(case),
)  # fmt: skip
SUBJECTS = [AUTO, CPU, CUDA, ATEN, COMPOSITE, LAZY_SUBJECT, BATCH_NORM]
SUBJECTS += [WINDOW_OF_ONE, WITHOUT_NOISE, FUSED, COMPOSED]


def fill(layer: Any, t: Inputs) -> Any:
    """Give the layer the parameters and running statistics of the inputs."""
    with torch.no_grad():
        for name in ("running_mean", "running_var", "weight", "bias"):
            value, own = getattr(t, name), getattr(layer, name)
            if value is not None and own is not None:
                own.copy_(value)
    return layer


class Step(NamedTuple):
    """What a training step gives, apart from what it leaves in the layer."""

    y: Tensor
    dx: Tensor
    dresidual: Tensor | None


def arguments(t: Inputs) -> dict[str, Any]:
    """What a layer is called with besides x."""
    named = {"mask": t.mask, "residual": t.residual}
    return {name: value for name, value in named.items() if value is not None}


def full_step(layer: nn.Module, t: Inputs) -> Step:
    """A training forward and backward with the inputs' cotangent."""
    x = t.x.detach().requires_grad_()
    given = arguments(t)
    if t.residual is not None:
        given["residual"] = t.residual.detach().requires_grad_()
    y = layer(x, **given)
    y.backward(t.dy)
    assert x.grad is not None
    return Step(y.detach(), x.grad, given["residual"].grad if "residual" in given else None)


def step(layer: nn.Module, t: Inputs) -> tuple[Tensor, Tensor]:
    """A training forward and backward with the inputs' cotangent: ``(y, dx)``."""
    return full_step(layer, t)[:2]
