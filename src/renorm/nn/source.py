"""The layer before a norm: which of them have an output that their own weights give linearly."""

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import type_before_parametrizations

Source = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

_CLASSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# what decides the output; a subclass or an instance with its own may compute something else
_DECISIVE = ("forward", "_conv_forward", "__call__", "_call_impl", "weight", "bias")


def obstacle(module: nn.Module, channels: int) -> str | None:
    """Why a module cannot be the source of a norm, or None if it can.

    The source of a norm is the layer whose output is exactly the norm's input, and whose output
    is ``weight * patches + bias`` with parameters of its own.

    Args:
        module: the layer before the norm.
        channels: of the norm.

    Returns:
        Words that go on after the name of the module.

    >>> obstacle(nn.Conv2d(3, 4, 1), 4)
    >>> obstacle(nn.ReLU(), 4)
    'is a ReLU, and a source is an nn.Linear or an nn.Conv1d, Conv2d or Conv3d'
    """
    return _kind(module) or _computed(module) or _shape(module, channels)


def _kind(module: nn.Module) -> str | None:
    cls = type_before_parametrizations(module)
    a = f"is {'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__}"
    if isinstance(module, _ConvTransposeNd):
        return f"{a}, and a transposed convolution cannot be a source"
    base = next((c for c in cls.__mro__ if c in _CLASSES), None)
    if base is None:
        return f"{a}, and a source is an nn.Linear or an nn.Conv1d, Conv2d or Conv3d"
    added = [c for c in cls.__mro__ if c not in base.__mro__]
    changes = [name for name in _DECISIVE if any(name in vars(c) for c in added)]
    if changes:
        return f"{a} and defines its own {', '.join(changes)}"
    return None


def _computed(module: nn.Module) -> str | None:
    replaced = [f"{name} (set on the instance)" for name in _DECISIVE[:4] if name in vars(module)]
    if replaced:
        return f"defines its own {', '.join(replaced)}"
    missing = [name for name in ("weight", "bias") if name not in module._parameters]
    if missing:
        return (
            f"has no parameter of its own for its {' and '.join(missing)}: parametrizations, "
            "weight_norm, spectral_norm and pruning compute it from others"
        )
    return None


def _shape(module: nn.Module, channels: int) -> str | None:
    weight = module._parameters["weight"]
    if isinstance(weight, UninitializedParameter):
        return "is lazy and has no weight yet: run the model once before"
    if weight is None:
        return "has no weight"
    if weight.shape[0] != channels:
        return f"gives {weight.shape[0]} channels, and the norm takes {channels}"
    if weight.is_complex():
        return f"has a weight of {weight.dtype}, and statistics are of real values"
    return None
