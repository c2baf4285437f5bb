"""Runs that neither depend on the process around them nor leave a trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator, use one thread, record gradients; put all back at the end.

    One thread makes sums, and so results, the same on every number of cores.

    >>> before = torch.get_rng_state()
    >>> with isolated(0):
    ...     first = torch.rand(1)
    >>> with isolated(0):
    ...     assert torch.rand(1) == first
    >>> bool((torch.get_rng_state() == before).all())
    True
    """
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
        with torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
