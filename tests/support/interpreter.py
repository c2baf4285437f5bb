"""Triton's interpreter, which runs device code on the cpu in numpy, made to round as devices do."""

import importlib.util
import os
from typing import Any


def use() -> None:
    """Have Triton's device code interpreted, if it is installed; before anything imports it."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton") is not None:
        _round_to_nearest()
        _prepare_once()


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
    """A launch prepares the language; the interpreter does it again for every function called."""
    from triton.runtime.interpreter import InterpretedFunction

    prepare_and_call = InterpretedFunction.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__.startswith("triton."):  # these see the language by other names
            return prepare_and_call(self, *args, **kwargs)
        return self.rewrite()(*args, **kwargs)

    InterpretedFunction.__call__ = call
