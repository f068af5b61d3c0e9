"""What a training takes at its peak, apart from what its process held before."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

__all__ = ["MemoryMeter"]


class MemoryMeter:
    """Measures from when it is made: on an accelerator its memory, else this process's.

    Args:
        device: where the training runs.
    """

    def __init__(self, device: str) -> None:
        self._is_cuda = torch.device(device).type == "cuda"
        self._device = device
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            self._before = _resident_bytes_now()

    def forget_peak(self) -> None:
        """Counts the peak from here, but still above what was held before the meter was made."""
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _resident_bytes_now()

    def peak_bytes(self) -> int:
        """The largest that was held beyond the beginning; 0 where the system does not tell."""
        peak = torch.cuda.max_memory_allocated(self._device) if self._is_cuda else _resident_bytes_at_most()
        return max(0, peak - self._before)


def _resident_bytes_now() -> int:
    """What is resident; on Linux the peak is measured anew from here."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or a sandbox: the peak of the whole process counts
        return 0
    return _resident_bytes_at_most()


def _resident_bytes_at_most() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return _peak_of_the_process()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def _peak_of_the_process() -> int:
    if sys.platform == "win32":
        return 0
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
