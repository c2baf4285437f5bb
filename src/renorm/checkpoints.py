"""Checkpoints of other implementations as state dicts that our layers load strictly.

A checkpoint of nn.BatchNorm needs no mapping, its five entries are ours: load it, then call
``layer.restart_limits()`` on the layers, since its step count would open the limits at once.

The functions are pure: their argument stays as it is, tensors are handed on and not copied, in
their dtype and on their device. Settings are in no checkpoint: give the layers the ``eps`` that the
others had, and in eval they compute the same. Training goes on by our arithmetic and ``limits``.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from renorm.errors import ArgumentError

_OURS = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")
_SB3_CONTRIB = ("ra_mean", "ra_var", "steps", "scale", "bias")
_KERAS = {"moving": ("moving_mean", "moving_variance"), "renorm": ("renorm_mean", "renorm_stddev")}
_KERAS_AFFINE = ("gamma", "beta")
_KERAS_EXTRA = ("moving_stddev", "renorm_mean", "renorm_stddev")  # with renorm=True alone


def torchrl(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state_dict of a model with TorchRL's ``BatchRenorm1d``, checked; the names are ours.

    Eval is ours too, ``(x - running_mean) / sqrt(running_var + eps) * weight + bias``, with the
    same default eps of 1e-5. What the entries hold differs in two ways, and neither is undone:

    - ``num_batches_tracked`` counts training forwards, as here, so our limits resume at that step.
      There ``r - 1`` and ``d`` are multiplied by ``step / warmup_steps`` (rounded down unless
      ``smooth``), without bound: the same as ``Limits(Ramp(1, 3, w, w), Ramp(0, 5, w, w))`` with
      ``w = warmup_steps`` up to ``2 * w``, and runaway from there on, which ours has not.
    - ``running_var`` averages the biased variance times N / (N - 1), of N examples however many
      positions each has: next to nothing for rows by the hundred, a factor of 2 for two images.
      Eval stays as it was; ``renorm.calibrate`` recomputes it.

    Args:
        state: a whole model's, of any nesting. Layers of nn.BatchNorm in it look the same and
            are held to the same.

    Returns:
        The same entries in a new dict.

    Raises:
        ArgumentError: no layer with running statistics, or one of which an entry is missing, has
            another shape than the rest, or is negative or not finite where it must not be.

    Source: torchrl/modules/models/batchrenorm.py in TorchRL 0.14.1.

    >>> from renorm import BatchRenorm1d
    >>> theirs = {f"1.{name}": value for name, value in BatchRenorm1d(2).state_dict().items()}
    >>> torchrl(theirs) == theirs
    True
    """
    return _renamed(state, "TorchRL's BatchRenorm1d", _OURS)


def sb3_contrib(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state_dict of a model with sb3-contrib's ``BatchRenorm1d`` (CrossQ) under our names.

    ``ra_mean, ra_var, steps, scale, bias`` become ``running_mean, running_var,
    num_batches_tracked, weight, bias``. Eval is ``(x - ra_mean) / sqrt(ra_var + eps) * scale +
    bias`` **with eps 1e-3, which is not in the state**: build ours with ``eps=1e-3``.

    ``ra_var`` averages the unbiased variance of the batch, ours the biased standard deviation.
    ``steps`` counts training forwards, as our counter does; ``limits.crossq()`` is their schedule,
    a step earlier: open at 100,000 steps, not behind them. With ``affine=False`` their state still
    has ``scale`` and ``bias``, ones and zeros that nothing trained: ours is then an affine layer.

    Args:
        state: a whole model's, of any nesting, such as ``policy.state_dict()``.

    Returns:
        A new dict with the entries of these layers renamed and all others unchanged.

    Raises:
        ArgumentError: no such layer, or one of which an entry is missing, has another shape than
            the rest, is negative or not finite where it must not be, or would overwrite another.

    Source: sb3_contrib/common/torch_layers.py in sb3-contrib 2.9.2.

    >>> from renorm import BatchRenorm1d
    >>> theirs = {"ra_mean": torch.ones(2), "ra_var": torch.ones(2), "steps": torch.tensor(7),
    ...           "scale": torch.ones(2), "bias": torch.zeros(2)}
    >>> BatchRenorm1d(2, eps=1e-3).load_state_dict(sb3_contrib(theirs))
    <All keys matched successfully>
    """
    return _renamed(state, "sb3-contrib's BatchRenorm1d", _SB3_CONTRIB)


def keras(
    weights: Mapping[str, Any],
    *,
    step: int = 0,
    statistics: Literal["moving", "renorm"] = "moving",
    eps: float = 1e-3,
) -> dict[str, Any]:
    """The weights of one Keras ``BatchNormalization``, with or without ``renorm=True``.

    Keras has the statistics twice, by ``momentum`` for inference and by ``renorm_momentum`` for r
    and d; with equal momenta, as by default, the two are the same. Our layer has them once::

        "moving"   running_mean = moving_mean    running_var = moving_variance
        "renorm"   running_mean = renorm_mean    running_var = max(renorm_stddev^2 - eps, 0)

    The first gives Keras's inference, the second its r and d, with its floor of ``sqrt(eps)``.
    ``renorm_stddev`` holds eps within, as ``moving_stddev`` does, and ``moving_variance`` does not.

    Build the layer with **Keras's epsilon, 1e-3 by default**, ``momentum = 1 - renorm_momentum``,
    and limits for its ``renorm_clipping``, which bounds nothing that it does not name: without
    one that is ``limits.fixed(inf, inf)``. Our input has its channels in dimension 1. A layer with
    ``scale=False, center=False`` is ours with ``affine=False``, and one with ``center=False`` ours
    with ``bias=False``. Only ``scale=False`` we lack: the weight is ones, to be left untrained.

    Args:
        weights: name to array or tensor, ``{w.name: w.numpy() for w in layer.weights}``.
        step: for ``num_batches_tracked``, which Keras has not; 0 starts the limits' schedule.
        statistics: which of the two sets; only ``"moving"`` without ``renorm=True``.
        eps: Keras's epsilon, above 0; only ``"renorm"`` needs it.

    Returns:
        The state dict of one layer. It shares the memory of what was given, unless read-only.

    Raises:
        ArgumentError: a name missing or unknown, an array that is no floating-point vector of the
            same length as the rest, statistics that are negative or not finite where they must
            not be, or a setting out of range.

    Source: keras/src/layers/normalization/batch_normalization.py in Keras 3.15.1.

    >>> weights = {"moving_mean": np.zeros(2), "moving_variance": np.array([1.0, 4.0])}
    >>> keras(weights)["running_var"]
    tensor([1., 4.], dtype=torch.float64)
    """
    if statistics not in _KERAS:
        raise ArgumentError(f"statistics is 'moving' or 'renorm', got {statistics!r}.")
    if not isinstance(step, int) or step < 0:
        raise ArgumentError(f"step counts training steps, a whole number from 0 on, got {step!r}.")
    if not isinstance(eps, int | float) or not 0 < eps < float("inf"):
        raise ArgumentError(f"eps is the epsilon of the Keras layer, above 0, got {eps!r}.")
    source = "Keras's BatchNormalization"
    _check_mapping(source, weights)
    renorm = statistics == "renorm" or any(name in weights for name in _KERAS_EXTRA)
    needed = (*_KERAS["moving"], *_KERAS_EXTRA) if renorm else _KERAS["moving"]
    _check_names(source, weights, needed)
    unknown = sorted(set(weights) - {*_KERAS_AFFINE, *needed})
    if unknown:
        raise ArgumentError(
            f"{source} has no {', '.join(unknown)}; it has {', '.join(_KERAS_AFFINE + needed)}. "
            "Give one layer's weights, {w.name: w.numpy() for w in layer.weights}."
        )
    tensors = {name: _tensor(source, name, value) for name, value in weights.items()}
    mean_name, var_name = _KERAS[statistics]
    _check_vectors(source, tensors)
    _check_statistics(source, tensors, mean_name, var_name)
    mean, var = tensors[mean_name], tensors[var_name]
    if statistics == "renorm":
        var = (var.square() - eps).clamp(min=0)
        _check_statistics(source, {"renorm_stddev^2": var}, "renorm_stddev^2", "renorm_stddev^2")
    count = torch.tensor(step, device=mean.device)
    state: dict[str, Any] = dict(zip(_OURS, (mean, var, count), strict=False))
    if "gamma" in tensors:
        state["weight"] = tensors["gamma"]
    if "beta" in tensors:
        state.setdefault("weight", torch.ones_like(mean))
        state["bias"] = tensors["beta"]
    return state


def _renamed(state: Mapping[str, Any], source: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The state with the entries of all layers under our names, and everything else as it is."""
    _check_mapping(source, state)
    mean, var, count, *_ = names
    ends = [(key, name) for key in state for name in (mean, var) if f".{key}".endswith(f".{name}")]
    prefixes = dict.fromkeys(key.removesuffix(name) for key, name in ends)
    if not prefixes:
        raise ArgumentError(
            f"No layer of {source} is in the state, which has {_some(state)}; such a layer has "
            f"{', '.join(names)}. Give the state_dict itself, not what a file has around it. "
            "nn.BatchNorm's needs no mapping."
        )
    moved: dict[str, tuple[str, Tensor]] = {}
    for prefix in prefixes:
        where = f"{source} {prefix[:-1]!r}" if prefix else source
        _check_names(where, state, names, prefix)
        layer = {name: _tensor(where, name, state[prefix + name]) for name in names}
        pairs = zip(layer.items(), _OURS, strict=True)
        moved |= {prefix + theirs: (prefix + ours, value) for (theirs, value), ours in pairs}
        _check_count(where, count, layer.pop(count))
        _check_vectors(where, layer)
        _check_statistics(where, layer, mean, var)
    taken = [name for name, _ in moved.values() if name in state and name not in moved]
    if taken:
        raise ArgumentError(
            f"The layers of {source} would overwrite {', '.join(taken)}, which the state has "
            "already. Rename those entries, or leave them out."
        )
    renamed = OrderedDict(moved.get(item[0], item) for item in state.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:  # by these, other modules of the model load what they saved long ago
        vars(renamed)["_metadata"] = versions
    return renamed


def _tensor(source: str, name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    try:
        array = np.asarray(value)  # JAX's are read-only, which torch has no notion of
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"{source}: {name} is no array that torch can hold, got {type(value).__name__} "
            f"({error}). Give it as an array of float32."
        ) from error


def _check_mapping(source: str, state: object) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ArgumentError(
            f"The state of {source} maps names to tensors, got {type(state).__name__} with "
            f"{_some(state)}. Give a state_dict, or a dict like one."
        )


def _check_names(
    where: str, state: Mapping[str, Any], names: tuple[str, ...], prefix: str = ""
) -> None:
    missing = [prefix + name for name in names if prefix + name not in state]
    if missing:
        raise ArgumentError(
            f"{where} lacks {', '.join(missing)}: it has {', '.join(names)}, got {_some(state)}. "
            "Give all of its entries; leave out layers of another kind with such names."
        )


def _check_count(where: str, name: str, count: Tensor) -> None:
    whole = count.dim() == 0 and count.dtype in (torch.int32, torch.int64)
    if not whole or (not count.is_meta and int(count) < 0):
        raise ArgumentError(
            f"{where}: {name} counts steps, a whole number from 0 on without dimensions, "
            f"got {count!r}. Set it to torch.tensor(0) to start the schedule again."
        )


def _check_vectors(where: str, layer: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(value.shape) for name, value in layer.items()}
    floating = all(value.is_floating_point() for value in layer.values())
    if len(set(shapes.values())) > 1 or any(len(s) != 1 for s in shapes.values()) or not floating:
        got = ", ".join(f"{name} {value.dtype} {shapes[name]}" for name, value in layer.items())
        raise ArgumentError(
            f"{where}: all entries are floating-point vectors of one length, the number of "
            f"channels, got {got}. Take the entries of one layer, from one checkpoint."
        )


def _check_statistics(where: str, layer: Mapping[str, Tensor], mean: str, var: str) -> None:
    for name in (mean, var):
        value = layer[name]
        if value.is_meta:
            continue
        bad = ~value.isfinite() | (value < 0 if name == var else False)
        if bad.any():
            raise ArgumentError(
                f"{where}: {name} is finite{' and at least 0' if name == var else ''}, got "
                f"{value[bad][0].item()} in channel {int(bad.nonzero()[0])} ({int(bad.sum())} of "
                f"{len(bad)} channels). Take an earlier checkpoint, or set these statistics to "
                "mean 0 and variance 1 and recompute them with renorm.calibrate."
            )


def _some(state: object) -> str:
    if not isinstance(state, Mapping):
        return "no entries"
    few = ", ".join(str(key) for key in list(state)[:5])
    return f"{len(state)} entries" + (f", such as {few}" if few else "")
