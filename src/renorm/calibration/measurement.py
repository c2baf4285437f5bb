"""Having the layers of a model show the values that they normalize."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from renorm.nn import BatchRenorm

Observer = Callable[[_BatchNorm, Tensor, Tensor | None], None]


def set_modes(model: nn.Module, measured: Sequence[_BatchNorm], by_batch: bool) -> None:
    """Eval mode everywhere; measured layers normalize by their batch if ``by_batch``.

    A layer that does not track its statistics leaves them as they are in training mode too.
    """
    for module in model.modules():
        module.training = False  # not eval(), which a model may have overridden
    for layer in measured:
        layer.training = by_batch
        layer.track_running_stats = False
        if isinstance(layer, BatchRenorm):
            layer._memory = type(layer._memory)()


@contextlib.contextmanager
def observed(layers: Sequence[_BatchNorm], observe: Observer) -> Iterator[None]:
    """Show every input of the layers, and its mask, to ``observe``."""

    def look(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        assert isinstance(layer, _BatchNorm)
        x = args[0] if args else kwargs.get("input", kwargs.get("x"))
        mask = None
        if isinstance(layer, BatchRenorm):
            mask = args[1] if len(args) > 1 else kwargs.get("mask")
        if isinstance(x, Tensor):  # else the forward says what is wrong
            observe(layer, x, mask)

    handles: list[RemovableHandle] = []
    try:
        handles += [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
        yield
    finally:
        for handle in handles:
            handle.remove()
