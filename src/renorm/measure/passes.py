"""A model in three modes: normalizing by the batch, by running or by population statistics."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.calibration.measurement import set_modes
from renorm.measure.inputs import Population, mask_of
from renorm.measure.layers import Seen, adds_bias, is_frozen, statistics_of
from renorm.nn import BatchRenorm

Mode = Literal["batch", "running", "population"]
Observer = Callable[[str, nn.Module, Tensor, Tensor | None], None]
Forward = Callable[[nn.Module, Any], Any]


class Passes:
    """Forwards of a model, to be used inside of ``apart``.

    In every mode all modules but the normalization layers are in eval mode: no dropout. A layer
    that is given one value a channel normalizes it by its running statistics.

    Args:
        model: whose layers they are.
        layers: by name.
        forward: ``(model, batch) -> output``.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], forward: Forward) -> None:
        self._model, self._layers, self._forward = model, layers, forward
        self._trained = [
            m for m in layers.values() if isinstance(m, _BatchNorm) and not is_frozen(m)
        ]
        self._running = {n: statistics_of(m) for n, m in layers.items()}
        self._population = dict(self._running)
        self._observe: Observer | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Give the layers the hooks that observers see by."""
        with ExitStack() as stack:
            for name, layer in self._layers.items():

                def look(layer: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
                    self._look(name, layer, args, kwargs)

                handle = layer.register_forward_pre_hook(look, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def calibrate(self, populations: Mapping[str, Population]) -> None:
        """Have these as the population's statistics, where they are finite."""
        for name, population in populations.items():
            running = self._running[name]
            if running is not None:
                found = (population.mean, population.var)
                pair = [_as(value, like) for value, like in zip(found, running, strict=True)]
                self._population[name] = (pair[0], pair[1])

    def run(self, batch: Any, mode: Mode, observe: Observer | None = None) -> Any:
        """The output for a batch; every input of a layer is shown to ``observe``."""
        set_modes(self._model, self._trained, by_batch=mode == "batch")
        statistics = self._population if mode == "population" else self._running
        for name, layer in self._layers.items():
            pair = statistics[name]
            if pair is not None:  # bound, not written: a graph may hold the buffers
                layer._buffers["running_mean"], layer._buffers["running_var"] = pair
        self._observe = observe
        try:
            return self._forward(self._model, batch)
        finally:
            self._observe = None

    def _look(self, name: str, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs.get("input", kwargs.get("x"))
        if not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point() or x.is_meta:
            return  # the forward says what is wrong
        if layer.training and self._running[name] is not None:
            layer.training = x.numel() > x.shape[1]
        if self._observe is not None and x.numel():
            mask = mask_of(args, kwargs) if isinstance(layer, BatchRenorm) else None
            self._observe(name, layer, x, mask)


def _as(value: np.ndarray, like: Tensor) -> Tensor:
    found = torch.from_numpy(value).to(like.device, like.dtype)
    return torch.where(found.isfinite(), found, like)


@contextmanager
def seen(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[Seen]:
    """What forwards inside show of the layers: their calls, and the modules that feed them."""
    found = Seen()
    given: dict[int, tuple[weakref.ref[Tensor], int, str, bool]] = {}
    names = {layer: name for name, layer in layers.items()}

    def give(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            bias = adds_bias(module, output)
            given[id(output)] = (weakref.ref(output), version_of(output), name, bias)

    def take(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        x, name = args[0] if args else kwargs.get("input", kwargs.get("x")), names[layer]
        if not isinstance(x, Tensor):
            return
        found.calls[name] = found.calls.get(name, 0) + 1
        found.dtypes[name] = str(x.dtype).removeprefix("torch.")
        reference, version, source, bias = given.get(id(x), (None, 0, "", False))
        known = reference is not None and reference() is x and version == version_of(x)
        own = (source, bias) if known else None
        if found.sources.setdefault(name, own) != own:
            found.sources[name] = None

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            after = module.register_forward_hook(
                lambda module, args, output, name=name: give(name, module, output)
            )
            stack.callback(after.remove)
        for layer in names:
            stack.callback(layer.register_forward_pre_hook(take, with_kwargs=True).remove)
        yield found


def version_of(x: Tensor) -> int:
    """How often the tensor was changed in place; 0 where that is not counted."""
    return 0 if x.is_inference() else x._version  # inference tensors have none
