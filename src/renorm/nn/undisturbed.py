"""Running a model to learn something of it: afterwards it is as it was."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from renorm.nn import window_settings
from renorm.nn.batch_renorm import BatchRenorm
from renorm.nn.cross_iteration import CrossIterationBatchNorm
from renorm.nn.recomputation import Memory
from renorm.nn.sharing import Sync


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore modes, what normalization layers remember, and torch's generators, whatever happens.

    Meanwhile the layers share nothing with other processes, which may not be doing the same.
    """
    modes = [(module, module.training) for module in model.modules()]
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    attributes = [(layer, layer.track_running_stats) for layer in norms]
    ours = [layer for layer in norms if isinstance(layer, BatchRenorm)]
    for layer in ours:
        layer._settle()
    settings: list[tuple[BatchRenorm, Memory, Sync]]
    settings = [(layer, layer._memory, layer.sync) for layer in ours]
    windows = [layer for layer in norms if isinstance(layer, CrossIterationBatchNorm)]
    buffers = [b for layer in norms for b in layer.buffers(recurse=False)]
    for layer in ours:
        if layer._averages is not None:  # which backward passes move
            buffers += [layer._averages.values, layer._averages.passes]
    with restored(buffers), _windows_apart(windows), _generators(model), _eager(), torch.no_grad():
        try:
            for layer in ours:
                layer.sync = None
            yield
        finally:
            for module, training in modes:
                module.training = training
            for layer, tracking in attributes:
                layer.track_running_stats = tracking
            for layer, memory, sync in settings:
                layer._memory, layer.sync = memory, sync


@contextlib.contextmanager
def _windows_apart(layers: Sequence[CrossIterationBatchNorm]) -> Iterator[None]:
    """Begin windows of their own, and go on with those there are afterwards."""
    names = ("_history", "_seen", "_weights", "_step", "_memory")
    before = [{name: vars(layer)[name] for name in names} for layer in layers]
    try:
        for layer in layers:
            vars(layer).update(
                _history=window_settings.history_for(layer, layer.source), _memory=Memory()
            )
        yield
    finally:
        for layer, kept in zip(layers, before, strict=True):
            vars(layer).update(kept)


@contextlib.contextmanager
def restored(buffers: Sequence[Tensor], *, on_error_only: bool = False) -> Iterator[None]:
    """Put the present values back into the buffers at the end, or if the end is an exception."""
    buffers = [buffer for buffer in buffers if not buffer.is_meta]
    copies = [buffer.clone() for buffer in buffers]
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or not on_error_only:
            for buffer, copy in zip(buffers, copies, strict=True):
                overwrite(buffer, copy)


def overwrite(buffer: Tensor, value: Tensor) -> None:
    """Copy into a buffer, unless it has the value: a graph may need it as it is."""
    with torch.no_grad(), torch.inference_mode(buffer.is_inference()):
        if not torch.equal(buffer, value):
            buffer.copy_(value)


def _generators(model: nn.Module) -> contextlib.AbstractContextManager:
    devices = {p.device for p in model.parameters()} | {b.device for b in model.buffers()}
    indices = sorted(d.index for d in devices if d.type == "cuda")
    return torch.random.fork_rng(devices=indices, device_type="cuda")  # and the CPU's, always


def _eager() -> contextlib.AbstractContextManager:
    """Compiled code does not see hooks that come after it; a compiled model runs uncompiled."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")
