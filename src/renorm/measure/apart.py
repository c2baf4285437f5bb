"""Running a model to measure it: whatever happens, it is afterwards as it was, bit for bit."""

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from renorm.nn.undisturbed import restored, undisturbed


@contextlib.contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Restore all that forwards, passes and user code inside may change of a model, and the draws.

    These are modes, the values of all buffers, what attributes and buffers are bound to, hooks,
    whether parameters are sharded, and the random states of Python, NumPy and torch on every
    device of the model. No gradient is computed inside.
    """
    with (
        undisturbed(model),
        host_generators(),
        _accelerators(model),
        _bindings(model),
        _shards(model),
        restored([b for b in model.buffers() if b.layout is torch.strided]),
    ):
        yield


@contextlib.contextmanager
def _bindings(model: nn.Module) -> Iterator[None]:
    """Keep which objects the attributes of modules are, and what their tables and lists hold."""
    before = [(vars(m), dict(vars(m)), _tables(m)) for m in model.modules()]
    lists = [(v, list(v)) for m in model.modules() for v in vars(m).values() if type(v) is list]
    try:
        yield
    finally:
        for own, entries in lists:
            own[:] = entries
        for attributes, kept, tables in before:
            for table, content in ((attributes, kept), *tables):
                if not _same(table, content):
                    table.clear()
                    table.update(content)


def _tables(module: nn.Module) -> list[tuple[dict, dict]]:
    """Parameters, buffers, children and hooks."""
    return [(v, dict(v)) for v in vars(module).values() if isinstance(v, dict)]


def _same(left: dict, right: dict) -> bool:
    """Whether the same names stand for the same objects, in the same order."""
    return list(left) == list(right) and all(left[name] is right[name] for name in left)


@contextlib.contextmanager
def _shards(model: nn.Module) -> Iterator[None]:
    """Shard again what forwards under ``fully_shard`` have put together, or the other way round.

    To be left before the tables of parameters are put back, which hold the one or the other.
    """
    units = _sharded_units(model)
    before = [_is_sharded(unit) for unit in units]
    try:
        yield
    finally:
        for unit, was in zip(units, before, strict=True):
            if was != _is_sharded(unit):
                (unit.reshard if was else unit.unshard)()


def _sharded_units(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was called with."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # else nothing is sharded
    return [] if fsdp is None else [m for m in model.modules() if isinstance(m, fsdp.FSDPModule)]


def _is_sharded(unit: nn.Module) -> bool:
    """Whether the parameters of the unit itself are there as shards."""
    inner = {m for other in _sharded_units(unit) if other is not unit for m in other.modules()}
    own = (p for m in unit.modules() if m not in inner for p in m.parameters(recurse=False))
    return any(hasattr(p, "full_tensor") for p in own)


@contextlib.contextmanager
def host_generators() -> Iterator[None]:
    """Keep the random states of Python and NumPy."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


@contextlib.contextmanager
def _accelerators(model: nn.Module) -> Iterator[None]:
    """The generators of accelerators other than CUDA's, which ``undisturbed`` sees to."""
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    kinds = sorted({d.type for d in devices} - {"cpu", "cuda", "meta"})
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            indices = sorted(d.index or 0 for d in devices if d.type == kind)
            stack.enter_context(torch.random.fork_rng(devices=indices, device_type=kind))
        yield
