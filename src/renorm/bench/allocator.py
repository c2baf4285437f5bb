"""Freed memory stays with the process, as it does in a training loop."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_pages() -> str:
    """Have glibc's allocator reuse the pages of freed tensors; returns what was done.

    By default glibc takes large blocks from the kernel and gives them back when they are freed, so
    that every fresh output costs a page fault for each 4 KiB of it: as much time as the arithmetic,
    for each provider alike, which draws ratios towards 1. M_MMAP_THRESHOLD does not help above its
    limit of 32 MiB, so no block at all is mapped on its own. It holds for the rest of the process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return "left as it is: its settings can be changed in glibc alone"
    done = mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return "glibc, freed pages are kept" if done else "glibc, which refused to keep freed pages"
