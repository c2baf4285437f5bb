"""Batch renorm followed by an activation, with the state of the norm alone."""

from typing import Any

from torch import Tensor, nn

from renorm.nn.batch_renorm import BatchRenorm2d


class BatchRenormAct2d(BatchRenorm2d):
    """Batch renorm, then ``drop``, then ``act``: the counterpart of timm's BatchNormAct2d.

    Args:
        num_features: C, the number of channels.
        act: applied last; any module.
        drop: applied between norm and activation; any module.
        **options: those of ``BatchRenorm2d``.

    >>> import torch
    >>> bool((BatchRenormAct2d(4, act=nn.ReLU())(torch.randn(2, 4, 3, 3)) >= 0).all())
    True
    """

    drop: nn.Module
    act: nn.Module

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        drop: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_features, **options)
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.Identity() if act is None else act

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize, drop and activate ``input`` (N, C, H, W); padding becomes act(drop(0))."""
        return self.act(self.drop(super().forward(input, mask)))
