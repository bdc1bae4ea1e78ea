"""Keeps the C library from handing memory back to the system that is needed again at once.

An attack's step and a chunk of windows free as much as the next one takes. glibc returns what is
free at the end of its heap from 64 MB on, and every page that comes back costs its first touch:
measured up to a fifth of an attack's time, by chance of how the heap lies. So while something is
computed nothing is returned; afterwards it is, as before.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's numbers for mallopt
LARGEST = 2**31 - 1
# Where glibc's own adaptation ends, which a program that frees tensors has soon reached.
ADAPTED = {MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")

_lock = threading.Lock()
_inside = 0  # how many are computing


@contextmanager
def held() -> Iterator[None]:
    """Return nothing to the system meanwhile; of no effect where that is another C library's.

    Nor where the environment has settings of its own for memory. Others may hold it at the same
    time, on any thread: the last one to leave lets go.
    """
    global _inside
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            mallopt(MMAP_THRESHOLD, ADAPTED[MMAP_THRESHOLD])
            mallopt(TRIM_THRESHOLD, LARGEST)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                mallopt(TRIM_THRESHOLD, ADAPTED[TRIM_THRESHOLD])


@cache
def _mallopt() -> Any:
    """The C library's mallopt, if it is glibc's and nobody else has asked it for something."""
    if os.name != "posix" or any(name in os.environ for name in SETTINGS):
        return None
    library = ctypes.CDLL(None)
    known = hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")
    return library.mallopt if known else None
