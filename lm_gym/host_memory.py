"""The process's own memory between updates.

glibc hands memory that was freed at the end of its heap back to the system, which clears every page of it again for
the next tensor that wants it: 65,000 pages and 7% of an iteration of a small model. What an update needed the next one
needs too, so agents tell glibc to keep it.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 32 * 2**20
"""Bytes from which a tensor is mapped by itself in any case: the most that every glibc accepts."""
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Keep what is freed for what is asked for next, up to the most that was ever used; for the whole process.

    Returns whether it did: not without glibc, and not where the user has set one of :data:`SETTINGS`.
    """
    if any(name in os.environ for name in SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, Windows, musl
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
