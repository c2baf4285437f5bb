"""Algorithm 2 of the batch norm paper, and its exact variant."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer

from renorm.calibration.measurement import observed, set_modes
from renorm.calibration.pooling import Paper, Pool, Population
from renorm.errors import ArgumentError
from renorm.nn import BatchRenorm
from renorm.nn.undisturbed import overwrite, restored, undisturbed

M = TypeVar("M", bound=nn.Module)
Forward = Callable[[nn.Module, Any], Any]
Statistics = dict[_BatchNorm, tuple[Tensor, Tensor]]

_POOLS: dict[str, Callable[[str], Pool]] = {"population": Population, "paper": Paper}


def calibrate(
    model: M,
    batches: Iterable[Any],
    *,
    pool: Literal["population", "paper"] = "population",
    upstream: Literal["train", "calibrated"] = "train",
    forward: Forward | None = None,
    uncalled: Literal["raise", "keep"] = "raise",
) -> M:
    """Set the running statistics of a model to those of a population, in place.

    For every batch norm and batch renorm layer, per channel over batches B of m values::

        population:  mean = E[x]           var = E[(x - mean)^2]              of all values
        paper:       mean = E_B[mu_B]      var = E_B[m / (m - 1) * var_B]     of all batches

    ``"population"`` gives the same answer however the values are split. In ``"paper"`` every call
    of a layer is a batch, with ``microbatch`` every group, and each counts the same.

    Only ``running_mean`` and ``running_var`` change, at the very end and all or none: step
    counts, modes, hooks and torch's random state are afterwards as they were, after an exception
    or an interrupt too. Meanwhile every other module is in eval mode, so there is no dropout, and
    compiled models run eagerly. Frozen layers keep their statistics and normalize by them; layers
    without statistics have nothing to set. A layer's own input counts, without what ``mask`` hides
    from it; one that is called several times pools its calls. In a distributed run each process
    calibrates by its own batches.

    Args:
        model: a trained model, in any mode.
        batches: tensors; tuples or lists, of which the first element is the input; dicts of
            keyword arguments; or anything that ``forward`` takes. On the model's device.
        pool: see above.
        upstream: what a layer deep in the model sees. ``"train"``: the layers before it normalize
            by their batch, batch renorm with its present limits, as in training and in the paper;
            one pass. ``"calibrated"``: the layers before it are calibrated already and normalize
            by the new statistics, as they will in eval; layer after layer in the order of their
            first call, with one pass each, for which ``batches`` must be iterable again. Layers
            not calibrated yet normalize by their old statistics.
        forward: ``(model, batch) -> ...``, for any other way to call the model.
        uncalled: ``"raise"`` where a layer gets no data, or ``"keep"`` its statistics.

    Returns:
        The model.

    Raises:
        ArgumentError: no batch, no layer to calibrate, a layer that gets no data, statistics that
            are not finite, or an argument outside the ranges above.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Algorithm 2.

    >>> import torch
    >>> layer = calibrate(nn.BatchNorm1d(1), [torch.tensor([[1.0], [3.0]])])
    >>> layer.running_mean, layer.running_var
    (tensor([2.]), tensor([1.]))
    """
    _check(batches, pool, upstream, uncalled)
    layers = _layers(model)
    call = forward or run_on
    with undisturbed(model):
        if upstream == "train":
            found = _in_one_pass(model, layers, batches, pool, call)
        else:
            found = _layer_by_layer(model, layers, batches, pool, call)
    missing = [name for layer, name in layers.items() if layer not in found]
    if missing and uncalled == "raise":
        raise ArgumentError(
            f"These layers got no data: {', '.join(missing)}. Nothing was written. Give batches "
            "that reach them, or leave their statistics with uncalled='keep'."
        )
    _write(found)
    return model


def _in_one_pass(
    model: nn.Module, layers: dict[_BatchNorm, str], batches: Iterable, pool: str, call: Forward
) -> Statistics:
    pools: dict[_BatchNorm, Pool] = {layer: _POOLS[pool](name) for layer, name in layers.items()}

    def observe(layer: _BatchNorm, x: Tensor, mask: Tensor | None) -> None:
        pools[layer].add(x, mask, getattr(layer, "microbatch", None))

    set_modes(model, list(layers), by_batch=True)
    with observed(list(layers), observe):
        _run(model, batches, call)
    return _results(pools, layers)


def _layer_by_layer(
    model: nn.Module, layers: dict[_BatchNorm, str], batches: Iterable, pool: str, call: Forward
) -> Statistics:
    found: Statistics = {}
    set_modes(model, list(layers), by_batch=False)
    while len(found) < len(layers):
        pools: dict[_BatchNorm, Pool] = {}

        def observe(
            layer: _BatchNorm,
            x: Tensor,
            mask: Tensor | None,
            pools: dict[_BatchNorm, Pool] = pools,
        ) -> None:
            if not pools:
                pools[layer] = _POOLS[pool](layers[layer])
            if layer in pools:
                pools[layer].add(x, mask, getattr(layer, "microbatch", None))

        with observed([layer for layer in layers if layer not in found], observe):
            _run(model, batches, call)
        new = _results(pools, layers)
        if not new:
            break
        _write(new)
        found |= new
    return found


def _run(model: nn.Module, batches: Iterable, call: Forward) -> None:
    empty = True
    for batch in batches:
        empty = False
        call(model, batch)
    if empty:
        raise ArgumentError(
            "There is no batch to calibrate by. Give a list or a DataLoader with at least one; "
            "upstream='calibrated' iterates over it once for every layer."
        )


def run_on(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch: a tensor, a sequence that begins with one, or keywords."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def _results(pools: Mapping[_BatchNorm, Pool], names: Mapping[_BatchNorm, str]) -> Statistics:
    found: Statistics = {}
    for layer, pool in pools.items():
        statistics = pool.result()
        if statistics is None:
            continue
        for buffer, value in zip((layer.running_mean, layer.running_var), statistics, strict=True):
            assert buffer is not None
            if not value.to(buffer.dtype).isfinite().all():
                raise ArgumentError(
                    f"The statistics of {names[layer]} are not finite in "
                    f"{buffer.dtype}; nothing was written. Look for nan, inf or very large values "
                    "in the batches and in the layers before."
                )
        found[layer] = statistics
    return found


def _write(found: Statistics) -> None:
    buffers = [b for layer in found for b in (layer.running_mean, layer.running_var)]
    values = [value for statistics in found.values() for value in statistics]
    written = [b for b in buffers if b is not None]
    with restored(written, on_error_only=True):
        for buffer, value in zip(written, values, strict=True):
            overwrite(buffer, value.to(buffer.device, buffer.dtype))


def _layers(model: nn.Module) -> dict[_BatchNorm, str]:
    modules = model.named_modules()
    norms = {m: name or "the model" for name, m in modules if isinstance(m, _BatchNorm)}
    lazy = [n for m, n in norms.items() if isinstance(m.running_mean, UninitializedBuffer)]
    if lazy:
        raise ArgumentError(
            f"These layers have no statistics yet: {', '.join(lazy)}. Initialize the model by a "
            "forward first."
        )
    layers = {
        m: name
        for m, name in norms.items()
        if m.running_mean is not None and not (isinstance(m, BatchRenorm) and m.frozen)
    }
    if not layers:
        raise ArgumentError(
            f"{type(model).__name__} has no layer to calibrate: a batch norm or batch renorm layer "
            f"that has running statistics and is not frozen. It has {len(norms)} others."
        )
    return layers


def _check(batches: Any, pool: str, upstream: str, uncalled: str) -> None:
    for name, value, allowed in (
        ("pool", pool, ("population", "paper")),
        ("upstream", upstream, ("train", "calibrated")),
        ("uncalled", uncalled, ("raise", "keep")),
    ):
        if value not in allowed:
            raise ArgumentError(f"{name} is {' or '.join(map(repr, allowed))}, got {value!r}.")
    check_batches(batches)
    if upstream == "calibrated" and isinstance(batches, Iterator):
        raise ArgumentError(
            f"upstream='calibrated' iterates over the batches once for every layer, but a "
            f"{type(batches).__name__} ends for good. Give a list or a DataLoader, or use "
            "upstream='train'."
        )


def check_batches(batches: Any) -> None:
    """Refuse what is no iterable of batches, such as a single batch."""
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise ArgumentError(
            f"batches is an iterable of batches, such as a DataLoader or a list, got "
            f"{type(batches).__name__}. For a single batch give [batch]."
        )
