"""How a norm sees the forwards of its source."""

import weakref
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Meeting:
    """A forward hook of a source, by which its norm sees each forward.

    The source holds no norm by it: one that is gone is seen no more, and a copy of the source
    alone has none. A norm that is copied together with its source meets the copy.
    """

    def __init__(self, norm: Any = None) -> None:
        self._norm = None if norm is None else weakref.ref(norm)

    @property
    def norm(self) -> Any:
        """The layer that meets the source, or None."""
        return None if self._norm is None else self._norm()

    def __call__(self, source: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        """Tell the norm of a forward."""
        norm = self.norm
        if norm is not None:
            norm._meet(source, args[0] if args else kwargs["input"], output)

    def __deepcopy__(self, memo: Any) -> "Meeting":
        return Meeting()

    def __reduce__(self) -> Any:
        return Meeting, ()


def meet(source: nn.Module, norm: _BatchNorm) -> None:
    """Have the norm see each forward of the source, before anyone else does."""
    part(source, norm)
    source.register_forward_hook(Meeting(norm), prepend=True, with_kwargs=True)


def part(source: nn.Module, norm: _BatchNorm) -> None:
    """Have the norm see nothing of the source any more."""
    for key, hook in list(source._forward_hooks.items()):
        if isinstance(hook, Meeting) and (hook.norm is None or hook.norm is norm):
            del source._forward_hooks[key]
            source._forward_hooks_with_kwargs.pop(key, None)
