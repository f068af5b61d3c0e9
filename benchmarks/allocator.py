"""What the C library does with freed memory, which is not what is to be timed."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees; False where the C library is not GNU's, or refused.

    By default that library gives blocks of more than 32 MiB back each time, and smaller ones where the process holds
    little else. They come again page by page, and which contender meets that is chance. jemalloc and tcmalloc, which
    PyTorch's guide for CPUs advises, mostly keep them.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_MMAP_MAX, 0)])
