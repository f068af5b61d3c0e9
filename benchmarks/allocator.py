"""What the C library does with freed memory, which is not what is to be timed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, as a training comes to do; False where the C library is not GNU's.

    By default memory goes back to the system and comes again page by page, in a process that holds little else, at
    allocations that depend on what was freed in between: whichever contender meets that takes up to twice as long.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_TRIM_THRESHOLD, -1)) and bool(mallopt(_M_MMAP_MAX, 0))
