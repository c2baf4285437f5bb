"""Batch renorm layers that take the number of channels from their first input."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _LazyNormBase
from torch.nn.parameter import is_lazy

from renorm.collectives import Group
from renorm.nn.activated import BatchRenormAct1d, BatchRenormAct2d, BatchRenormAct3d
from renorm.nn.batch_renorm import (
    PAPER,
    BatchRenorm,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    Schedule,
)
from renorm.nn.gradient_averages import Backward
from renorm.nn.sharing import Sync


class _LazyBatchRenorm(_LazyNormBase, BatchRenorm):
    """A layer without ``num_features``; it becomes the plain layer at the first forward."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        limits: Schedule = PAPER,
        microbatch: int | None = None,
        single: Literal["raise", "running"] = "raise",
        kernel: str | None = None,
        sync: Sync = None,
        process_group: Group = None,
        backward: Backward = "batch",
        backward_momentum: float = 0.3,
    ) -> None:
        # momentum=None is allowed; torch's own annotation forgets it
        momentum_: Any = momentum
        super().__init__(eps, momentum_, affine, track_running_stats, device, dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.configure(
            limits=limits,
            microbatch=microbatch,
            single=single,
            kernel=kernel,
            sync=sync,
            process_group=process_group,
            backward=backward,
            backward_momentum=backward_momentum,
        )

    def initialize_parameters(  # type: ignore[override]
        self, input: Tensor, mask: Any = None, residual: Any = None
    ) -> None:
        # torch's own forgets num_features where a checkpoint came first, or asks for a bias
        self.num_features = input.shape[1]
        tensors: Any = (self.weight, self.bias, self.running_mean, self.running_var)
        lazy = [t for t in tensors if t is not None and is_lazy(t)]
        for tensor in lazy:
            tensor.materialize((self.num_features,))
        if lazy:
            self.reset_parameters()
        self._begin_averages()


class LazyBatchRenorm1d(_LazyBatchRenorm, BatchRenorm1d):  # type: ignore[misc]
    """A ``BatchRenorm1d`` whose ``num_features`` is the first input's ``shape[1]``.

    >>> LazyBatchRenorm1d()(torch.randn(8, 4)).shape
    torch.Size([8, 4])
    """

    cls_to_become = BatchRenorm1d  # type: ignore[assignment]


class LazyBatchRenorm2d(_LazyBatchRenorm, BatchRenorm2d):  # type: ignore[misc]
    """A ``BatchRenorm2d`` whose ``num_features`` is the first input's ``shape[1]``.

    >>> LazyBatchRenorm2d()(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    cls_to_become = BatchRenorm2d  # type: ignore[assignment]


class LazyBatchRenorm3d(_LazyBatchRenorm, BatchRenorm3d):  # type: ignore[misc]
    """A ``BatchRenorm3d`` whose ``num_features`` is the first input's ``shape[1]``.

    >>> LazyBatchRenorm3d()(torch.randn(1, 2, 3, 4, 4)).shape
    torch.Size([1, 2, 3, 4, 4])
    """

    cls_to_become = BatchRenorm3d  # type: ignore[assignment]


class _LazyBatchRenormAct(_LazyBatchRenorm):
    def __init__(
        self,
        *settings: Any,
        act: nn.Module | None = None,
        drop: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*settings, **options)  # it makes the modules of None
        if act is not None:
            self.act = act
        if drop is not None:
            self.drop = drop


class LazyBatchRenormAct1d(_LazyBatchRenormAct, BatchRenormAct1d):  # type: ignore[misc]
    """A ``BatchRenormAct1d`` whose ``num_features`` is the first input's ``shape[1]``.

    >>> LazyBatchRenormAct1d(act=nn.SiLU())(torch.randn(8, 4)).shape
    torch.Size([8, 4])
    """

    cls_to_become = BatchRenormAct1d  # type: ignore[assignment]


class LazyBatchRenormAct2d(_LazyBatchRenormAct, BatchRenormAct2d):  # type: ignore[misc]
    """A ``BatchRenormAct2d`` whose ``num_features`` is the first input's ``shape[1]``.

    >>> LazyBatchRenormAct2d(act=nn.SiLU())(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    cls_to_become = BatchRenormAct2d  # type: ignore[assignment]


class LazyBatchRenormAct3d(_LazyBatchRenormAct, BatchRenormAct3d):  # type: ignore[misc]
    """A ``BatchRenormAct3d`` whose ``num_features`` is the first input's ``shape[1]``.

    >>> LazyBatchRenormAct3d(act=nn.SiLU())(torch.randn(1, 2, 3, 4, 4)).shape
    torch.Size([1, 2, 3, 4, 4])
    """

    cls_to_become = BatchRenormAct3d  # type: ignore[assignment]
