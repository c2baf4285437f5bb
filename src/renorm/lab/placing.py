"""The normalizers of ``renorm.normalizer`` put in the place of a model's nn.BatchNorm layers."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.conversion import convert
from renorm.conversion.pairing import pair as sources_of
from renorm.conversion.selection import norm_layers
from renorm.lab.activations import Seen, look, redundant
from renorm.nn.normalizers import normalizer, normalizers
from renorm.nn.normalizers.blocks import pair

CHANNEL_GROUPS = 4
# what the model's own layers decide
_OF_THE_MODEL = {"affine", "bias", "device", "dtype", "generator", "track_running_stats"}
# those that divide by something else than a deviation, and have an eps of their own size
_OWN_EPS = {"filter_response_norm", "weight_norm", "scaled_weight_standardization"}


@dataclass(frozen=True)
class Setting:
    """What a normalizer is set up for.

    Args:
        group: examples that share statistics in a forward; None for all of them.
        steps: training steps of the run.
        example: an input of the model, (1, ...) or more.
    """

    group: int | None
    steps: int
    example: Tensor


class PerGroup(nn.Module):
    """Apply a batch norm to each group of examples in turn, as a worker of its own would.

    In training, every group is normalized by its own statistics and moves the running ones once;
    in eval the groups make no difference and the batch is normalized in one call.

    Args:
        norm: a layer that takes statistics over the examples it is given.
        group: examples that share statistics, at least 1; the last group may be smaller.
    """

    def __init__(self, norm: nn.Module, group: int) -> None:
        super().__init__()
        self.norm = norm
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x`` (N, C, *spatial)."""
        if not self.training:
            return self.norm(x)
        return torch.cat([self.norm(part) for part in x.split(self.group)])


def options_of(name: str) -> tuple[str, ...]:
    """What ``place`` takes for a normalizer."""
    return tuple(option for option in normalizers()[name].options if option not in _OF_THE_MODEL)


def place(name: str, model: nn.Module, setting: Setting, **options: Any) -> nn.Module:
    """Replace the model's nn.BatchNorm layers by a normalizer.

    It takes over weight, bias and update rate of each layer. One that mixes examples is applied
    per group; one that acts on weights is paired with the layer before; and one that contains the
    nonlinearity takes the place of the activation too, where one directly follows. Where none
    does, as at the end of a residual branch and in a shortcut, it stands all the same, with its
    nonlinearity, and an activation after the addition stays. Unless they are given there are
    ``CHANNEL_GROUPS`` groups of channels, or as many of them as divide the channels.

    Args:
        name: as ``renorm.normalizers`` has it.
        model: changed in place, no random numbers are drawn.
        setting: what it is set up for.
        **options: of the normalizer.

    Raises:
        ArgumentError: as ``renorm.normalizer``, or an activation cannot be left out.
        ConversionError: there is no batch norm, or one without a source where that is needed.
    """
    entry, sites = normalizers()[name], norm_layers(model)
    norms = [site.layer for site in sites]
    unknown = any(_rank(norm) is None for norm in norms)
    seen = look(model, norms, setting.example) if entry.activates or unknown else Seen()
    left_out = redundant(model, seen) if entry.activates else []
    sources = sources_of(model, sites, setting.example) if entry.paired else {}

    def replacement(norm: _BatchNorm) -> nn.Module:
        layer = _made(name, norm, _rank(norm) or seen.dims.get(norm, 0), options)
        if norm in sources:
            pair(layer, sources[norm])
        group = setting.group if entry.mixes else None
        return layer if group is None else PerGroup(layer, group)

    model = convert(model, to=replacement)
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if any(child is one for one in left_out):
                parent.add_module(key, nn.Identity())
    return model


def _made(name: str, norm: _BatchNorm, dims: int, options: dict[str, Any]) -> nn.Module:
    allowed = normalizers()[name].options
    own = {"affine": norm.affine, "momentum": norm.momentum, "eps": norm.eps}
    if name in _OWN_EPS:
        del own["eps"]
    if not {"groups", "group_size"} & options.keys():
        own["groups"] = _groups(norm.num_features, dims)
    chosen = {key: value for key, value in own.items() if key in allowed} | options
    layer: Any = normalizer(name, norm.num_features, dims=dims, **chosen)
    if norm.affine and "affine" in allowed:
        layer.weight, layer.bias = norm.weight, norm.bias
    return layer


def _rank(norm: _BatchNorm) -> int | None:
    """The number of spatial dimensions, where the class tells."""
    ranks = ((nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3))
    return next((rank for cls, rank in ranks if isinstance(norm, cls)), None)


def _groups(channels: int, dims: int) -> int:
    """How many groups of channels there are unless it is given: none of a single value."""
    groups = math.gcd(CHANNEL_GROUPS, channels)
    return 1 if dims == 0 and groups == channels else groups
