"""How much a forward keeps for its backward."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Saved(NamedTuple):
    """Storages that a graph keeps, parameters not among them."""

    input_sized: int  # storages that have at least a value for each value of the input
    bytes: int  # of all


def saved(layer: nn.Module, x: Tensor) -> Saved:
    """What a training forward of ``layer`` on ``x`` saves; a storage saved twice counts once.

    What an autograd.Function keeps as a plain attribute is not seen; ours keep no tensor so.
    """
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # alive until the end, so that no address is used twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x.detach().requires_grad_())
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    unique = {tensor.untyped_storage().data_ptr(): tensor for tensor in kept}
    others = [tensor for address, tensor in unique.items() if address not in parameters]
    del y
    return Saved(
        sum(tensor.untyped_storage().nbytes() >= x.numel() * tensor.itemsize for tensor in others),
        sum(tensor.untyped_storage().nbytes() for tensor in others),
    )
