"""Runs that neither depend on the process around them nor leave a trace in it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the global generators, use one thread, record gradients; put all back at the end.

    So is torch's default dtype, whatever is done to it inside.

    The generators are torch's for the CPU, numpy's and Python's: replay buffers draw from the
    second, augmentations of images from any. One thread makes sums, and so results, the same on
    every number of cores.

    Args:
        seed: at least 0; numpy gets its lowest 32 bits.

    >>> before = torch.get_rng_state()
    >>> with isolated(0):
    ...     first = torch.rand(1)
    >>> with isolated(0):
    ...     assert torch.rand(1) == first
    >>> bool((torch.get_rng_state() == before).all())
    True
    """
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    dtype = torch.get_default_dtype()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        torch.set_num_threads(1)
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(state)
