"""Batch renorm, a residual and an activation in one layer, with the state of the norm alone."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from renorm import functional
from renorm.nn.batch_renorm import BatchRenorm, BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from renorm.nn.hooks import watched

# classes of which is known what they do where they do nothing
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class BatchRenormAct(BatchRenorm):
    """Batch renorm of any rank with an activation, and with an optional residual before that.

    The end of a residual block; without a residual, the counterpart of timm's BatchNormAct2d::

        y = act(drop(norm(x)) + residual)

    The state is that of the norm, the five entries of nn.BatchNorm, and of ``act`` and ``drop`` if
    they have any. The 1d, 2d and 3d classes also check the rank of their input.

    The kernel does it all in one call where ``act`` is an nn.ReLU (``inplace`` or not: the output
    is a new tensor either way) and ``drop`` does nothing: nn.Identity, or one of torch's dropouts
    with p=0 or in eval mode. With any other module, or where a hook of ``act``, of ``drop`` or of
    all modules would see the call, the modules are called; ``fused`` says which it is. The
    numbers are the same, but for one rounding more of half types before a residual is added.

    Args:
        num_features: C, the number of channels.
        *settings: those of ``BatchRenorm2d`` that may come by position: ``eps``, ``momentum``...
        act: applied last; None for nn.ReLU(), nn.Identity() for none.
        drop: applied between norm and residual; None for none.
        **options: those of ``BatchRenorm2d``.
    """

    act: nn.Module
    drop: nn.Module

    def __init__(
        self,
        num_features: int,
        *settings: Any,
        act: nn.Module | None = None,
        drop: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_features, *settings, **options)
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.ReLU() if act is None else act

    def forward(
        self, input: Tensor, mask: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Normalize, drop, add and activate.

        Args:
            input: (N, C, *spatial), floating point.
            mask: (N, *spatial) bool, True = real data. Padding enters no statistic; it is 0 when
                it comes to ``drop``.
            residual: as ``input``.
        """
        if residual is not None and isinstance(input, Tensor):  # not a proxy of torch.fx
            functional.check_residual(input, residual)
        if self.fused and isinstance(input, Tensor):
            return self._normalized(input, mask, residual, relu=True)
        y = self.drop(self._normalized(input, mask))
        return self.act(y if residual is None else y + residual)

    @property
    def fused(self) -> bool:
        """Whether norm, residual and activation are one operation now, and not one by one."""
        act, drop = self.act, self.drop  # once: nn.Module looks them up slowly
        return (
            type(act) is nn.ReLU
            and _passes(drop)
            and not (watched(act) or watched(drop) or _has_any_global_hook())
        )


def _passes(drop: nn.Module) -> bool:
    """Whether the module returns what it is given."""
    if type(drop) is nn.Identity:
        return True
    return type(drop) in _DROPOUTS and (not drop.training or bool(drop.p == 0))


class BatchRenormAct1d(BatchRenormAct, BatchRenorm1d):
    """``BatchRenorm1d`` with an activation and an optional residual; see ``BatchRenormAct``.

    >>> import torch
    >>> layer = BatchRenormAct1d(4, act=nn.SiLU())
    >>> layer(torch.randn(8, 4)).shape
    torch.Size([8, 4])
    """


class BatchRenormAct2d(BatchRenormAct, BatchRenorm2d):
    """``BatchRenorm2d`` with an activation and an optional residual; see ``BatchRenormAct``.

    >>> import torch
    >>> x = torch.randn(2, 4, 3, 3)
    >>> layer = BatchRenormAct2d(4)
    >>> layer.fused, bool((layer(x, residual=x) >= 0).all())
    (True, True)
    """


class BatchRenormAct3d(BatchRenormAct, BatchRenorm3d):
    """``BatchRenorm3d`` with an activation and an optional residual; see ``BatchRenormAct``.

    >>> import torch
    >>> BatchRenormAct3d(2)(torch.randn(1, 2, 3, 4, 4)).shape
    torch.Size([1, 2, 3, 4, 4])
    """
