"""Compiled code set aside while somebody looks: it does not see hooks that were added later."""

import sys
from contextlib import ExitStack
from threading import Lock

import torch


class _Stance:
    """The stance ``force_eager`` of torch.compiler, while anybody is inside.

    The stance is the process's, and each change of it puts back what it found. Were every monitor
    to change it, two that do not end in the order opposite to their beginning would leave it so.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._held = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0 and "torch._dynamo" in sys.modules:  # else nothing is compiled
                self._held.enter_context(torch.compiler.set_stance("force_eager"))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._held.close()


uncompiled = _Stance()
