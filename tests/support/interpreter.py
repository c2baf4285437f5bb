"""Triton's interpreter, which runs device code on the cpu in numpy, made to round as devices do."""

import functools
import importlib.util
import math
import os
from typing import Any


def use() -> None:
    """Have Triton's device code interpreted, if it is installed; before anything imports it."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton") is not None:
        _round_to_nearest()
        _prepare_once()
        _know_types()


def _round_to_nearest() -> None:
    """From float32 to bfloat16 a device rounds to nearest even; the interpreter cuts off bits."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    cut_off = InterpreterBuilder.cast_impl

    def cast(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            bits = np.ascontiguousarray(src.data).view(np.uint32)
            nearest = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
            kept = np.where(np.isnan(src.data), bits, nearest) & np.uint32(0xFFFF0000)
            src = type(src)(kept.view(np.float32), src.dtype)
        return cut_off(self, src, dst_type)

    InterpreterBuilder.cast_impl = cast


def _prepare_once() -> None:
    """Every launch and every function called prepares the language: once for each is enough."""
    from triton.runtime import interpreter

    prepare = interpreter._patch_lang

    @functools.cache
    def prepared(fn: Any) -> interpreter._LangPatchScope:
        prepare(fn)
        return interpreter._LangPatchScope()  # nothing to put back: the next launch needs it too

    interpreter._patch_lang = prepared


def _know_types() -> None:
    """Types are few, and are made and taken apart at every operation."""
    import numpy as np
    from triton.language import core as _core
    from triton.runtime import interpreter

    core: Any = _core
    find_dtype, make_type = interpreter._get_np_dtype, core.block_type.__init__
    dtypes: dict[str, np.dtype] = {}
    types: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
    shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def np_dtype(dtype: Any) -> np.dtype:
        name = dtype.scalar.name
        if name not in dtypes:
            dtypes[name] = find_dtype(dtype)
        return dtypes[name]

    def init_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, tuple(getattr(size, "value", size) for size in shape)
        if key not in types:
            make_type(self, element_ty, shape)
            types[key] = dict(vars(self))
        vars(self).update(types[key])

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        shape = tuple(type.shape) if type.is_block() else ()
        if shape not in shapes:
            numel = core.constexpr(math.prod(shape))
            shapes[shape] = numel, core.tuple([core.constexpr(size) for size in shape])
        self.numel, self.shape = shapes[shape]

    interpreter._get_np_dtype = np_dtype
    core.block_type.__init__ = init_type
    core.tensor.__init__ = init_tensor
