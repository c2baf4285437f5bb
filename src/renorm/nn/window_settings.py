"""What a cross-iteration layer is set to, and what follows from that and its source."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from renorm.errors import ArgumentError
from renorm.kernels.call import accumulation_dtype
from renorm.kernels.patches import Geometry
from renorm.nn.history import History, Method, Seen, Sizes, memory
from renorm.nn.source import Source, obstacle

Compensation = Literal["none", "first_order", "exact"]
Follow = Literal["window", "batch"]
Keeping = Literal["drop", "save"]
_CHOICES = {
    "compensation": ("none", "first_order", "exact"),
    "follow": ("window", "batch"),
    "history": ("drop", "save"),
}
_SMALL = 64  # values of a patch of which the covariance is affordable whatever the channels

# a CrossIterationBatchNorm; its module imports this one
Layer = Any


def check(
    window: int,
    burn_in: int,
    compensation: str,
    sample: int | None,
    follow: str,
    limits: Any,
    history: str,
) -> None:
    """Refuse settings outside their ranges."""
    for name, value, least in (("window", window, 1), ("burn_in", burn_in, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{name} counts iterations, at least {least}, got {value!r}.")
    chosen = {"compensation": compensation, "follow": follow, "history": history}
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            allowed = ", ".join(map(repr, _CHOICES[name]))
            raise ArgumentError(f"{name} must be one of {allowed}, got {value!r}.")
    if sample is not None and (isinstance(sample, bool) or not isinstance(sample, int)):
        raise ArgumentError(f"sample is a number of positions, or None for all, got {sample!r}.")
    if sample is not None and (sample < 1 or compensation == "none"):
        raise ArgumentError(
            f"sample is how many positions of an iteration the compensation is taken from, at "
            f"least 1, got {sample} with compensation={compensation!r}. Use None for all of them."
        )
    if limits is not None and not callable(limits):
        raise ArgumentError(
            f"limits is called with the step and returns (r_max, d_max), got {limits!r}. "
            "Take one of renorm.limits, such as limits.fixed(3, 5), or None for no correction."
        )


def geometry_of(source: Source) -> Geometry:
    """How a linear layer or a convolution reads its input."""
    if not isinstance(source, _ConvNd):
        return Geometry()
    around = list(source._reversed_padding_repeated_twice)  # the last dimension first
    pairs = list(zip(around[::2], around[1::2], strict=True))[::-1]
    return Geometry(
        tuple(source.kernel_size),
        tuple(source.stride),
        tuple(source.dilation),
        tuple((int(before), int(behind)) for before, behind in pairs),
        source.padding_mode,
        source.groups,
    )


def history_for(layer: Layer, source: Source | None) -> History:
    """An empty history for a layer with this source, or as long as it has none.

    Raises:
        ArgumentError: this cannot be the source.
    """
    C, lags = layer.num_features, layer.window - 1
    if source is None:
        return History("none", Sizes(C, 1, 0, lags, 0), None)
    why = obstacle(source, C)
    if why is not None:
        raise ArgumentError(
            f"{type(layer).__name__}({C}) takes the statistics of the layer in front, nn.Linear or "
            f"nn.Conv1d, 2d or 3d with {C} outputs, but a {type(source).__name__} {why}. Use "
            "compensation='none', which needs no such layer, or batch norm."
        )
    geometry = geometry_of(source)
    values = source.weight.shape[1:].numel()
    sizes = Sizes(C, geometry.groups, values, lags, layer.sample or 0)
    return History(_method(layer.compensation, layer.sample, sizes), sizes, geometry)


def _method(compensation: Compensation, sample: int | None, sizes: Sizes) -> Method:
    C, G, K, _, s = sizes
    if compensation == "none":
        return "none"
    if sample is not None:  # the smaller of two forms of the same
        if compensation == "exact":
            return "patches" if s < K else "covariance"
        return "outputs" if s * (G * K + C) < C * K else "derivative"
    affordable = compensation == "exact" and max(_SMALL, 2 * C // G) >= K
    return "covariance" if affordable else "derivative"


def history_bytes(layer: Layer) -> int:
    """The memory of a layer's history, whether or not it has begun."""
    unknown = layer.compensation != "none" and layer.source is None
    if layer.window == 1 or unknown:
        return 0
    parameter = layer.weight if layer.source is None else layer.source.weight
    dtype = torch.float32 if parameter is None else accumulation_dtype(parameter.dtype)
    return memory(layer._history.method, layer._history.sizes, dtype.itemsize)


def check_whole(layer: Layer) -> None:
    """Refuse to train a layer that lacks its source, or inside of a transform of torch.func."""
    if torch._C._are_functorch_transforms_active():
        raise ArgumentError(
            f"{named(layer)} remembers its iterations, which torch.func cannot transform. Use "
            "loss.backward(), or BatchRenorm, for training; eval can be transformed."
        )
    if layer.window > 1 and layer.compensation != "none" and layer.source is None:
        raise ArgumentError(
            f"{named(layer)} has no source, the layer whose output it normalizes and whose weights "
            "it compensates for. Build the model with nn.BatchNorm and call renorm.convert(model, "
            "to='cross_iteration'), or give it one with attach(source); or use "
            "compensation='none', which needs none."
        )


def check_source(layer: Layer, source: Source) -> None:
    """Refuse a source that has become another since: in how it reads, or by a parametrization."""
    g = layer._history.geometry
    if isinstance(source, _ConvNd) and (source.stride, source.dilation) != (g.stride, g.dilation):
        raise ArgumentError(
            f"{named(layer)} was attached to {layer.names[1] or 'its source'} when that read with "
            f"stride {g.stride} and dilation {g.dilation}; now they are {source.stride} and "
            f"{source.dilation}. Call attach(source) again."
        )
    if "parametrizations" in source._modules:
        raise ArgumentError(
            f"{named(layer)} compensates for the weights of {layer.names[1] or 'its source'}: they "
            "are computed by a parametrization now, and are no parameter of its own. Leave this "
            "layer out (convert(..., exclude=...)), or use compensation='none'."
        )


def check_seen(layer: Layer, seen: Seen | None, x: Tensor) -> Seen:
    """What the source told, if x is what it gave.

    Raises:
        ArgumentError: x comes from somewhere else, or was changed on the way.
    """
    source = layer.names[1] or f"its {type(layer.source).__name__}"
    advice = (
        "Leave this layer out (convert(..., exclude=...)), give convert an example input so that "
        "it sees what feeds it, or use compensation='none', which does not ask."
    )
    if seen is None or not _is(x, seen.output):
        raise ArgumentError(
            f"{named(layer)} normalizes the output of {source}, but its input is another tensor, "
            f"of shape {tuple(x.shape)}: something lies between them, the source was called "
            f"for something else since, or not at all. {advice}"
        )
    if seen.version is not None and seen.version != x._version:
        raise ArgumentError(
            f"{named(layer)} normalizes the output of {source}, which was changed in place before "
            f"it came here. {advice}"
        )
    return seen


def _is(x: Tensor, output: Tensor) -> bool:
    """Whether x is the output, or an alias of all of it, as hooks on the backward make one."""
    if x is output:
        return True
    layout = (x.shape, x.stride(), x.storage_offset())
    return x._base is output and layout == (output.shape, output.stride(), output.storage_offset())


def check_values(layer: Layer, x: Tensor) -> None:
    """Refuse one value a channel where nothing says how to normalize it, or what to average."""
    if not layer._borrows():
        raise ArgumentError(
            f"{named(layer)} got one value per channel, x of shape {tuple(x.shape)}, which has no "
            f"spread, and is batch norm as long as window=1 or burn_in={layer.burn_in} say so. Use "
            "a window without burn-in, or larger batches."
        )
    if layer.running_mean is None:
        raise ArgumentError(
            f"{named(layer)} got one value per channel, which has no spread, and has no earlier "
            "iterations nor running statistics to normalize it by. Begin with a larger batch, or "
            "keep running statistics."
        )


def check_follow(layer: Layer, x: Tensor) -> None:
    """Refuse running statistics of batches that have no variance."""
    if layer.follow == "batch" and layer.running_mean is not None:
        raise ArgumentError(
            f"{named(layer)} has follow='batch', but a batch of one value per channel, x of shape "
            f"{tuple(x.shape)}, has no variance for its running statistics. Use follow='window'."
        )


def named(layer: Layer) -> str:
    """The layer as messages call it."""
    name = f"{type(layer).__name__}({layer.num_features})"
    return f"{layer.names[0]} ({name})" if layer.names[0] else name
