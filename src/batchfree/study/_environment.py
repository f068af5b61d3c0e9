"""What a run is made on: versions, processor, threads, limits, memory."""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy
import torch

from batchfree import __version__
from batchfree.errors import StudyError
from batchfree.records import CellConfig, Environment

__all__ = [
    "MEMORY_VARIABLE",
    "check_device",
    "is_out_of_memory",
    "limit_memory",
    "present_environment",
    "says_out_of_memory",
    "size_bytes",
]

#: Tells a cell how much memory it may take, in bytes.
MEMORY_VARIABLE = "BATCHFREE_MEMORY_BYTES"

#: As torch, C++, CUDA, Python and Rust (safetensors) say it.
_OUT_OF_MEMORY = (
    "can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "MemoryError", "memory allocation of",
)  # fmt: skip

_UNITS = {"": 1, "B": 1, **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)}}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)}


def present_environment(config: CellConfig) -> Environment:
    """This process's."""
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=numpy.__version__,
        platform=platform.platform(),
        processor=_processor(config.device),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=config.threads,
        batchfree=__version__,
        torchvision=_installed("torchvision"),
        timm=_installed("timm"),
        cuda=torch.version.cuda if torch.device(config.device).type == "cuda" else None,
    )


def check_device(device: str) -> None:
    """Refuses what torch cannot compute on here.

    Raises:
        StudyError: no such device.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise StudyError(
            f"device {device!r} was given, and torch cannot use it: {str(error).splitlines()[0]} "
            f"Pass cpu, or an accelerator that torch finds on this machine."
        ) from None


def size_bytes(text: str) -> int:
    """The number of bytes that "8GiB", "500 MB" or "1024" mean.

    Raises:
        StudyError: not a size.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", text)
    unit = None if found is None else next((u for u in _UNITS if u.lower() == found[2].lower()), None)
    try:
        size = int(float(found[1]) * _UNITS[unit]) if found and unit is not None else 0
    except ValueError:
        size = 0
    if size <= 0:
        raise StudyError(
            f"{text!r} was given as a size. It is a number and a unit: {', '.join(filter(None, _UNITS))}. "
            f"Pass for instance 8GiB."
        )
    return size


def limit_memory() -> None:
    """Lets this process allocate no more than `MEMORY_VARIABLE` says; more is an error inside it, not a kill."""
    limit = os.environ.get(MEMORY_VARIABLE)
    if limit is None:
        return
    if not sys.platform.startswith("linux"):
        raise StudyError(
            f"a memory limit was given, and {sys.platform} cannot keep it. It works on Linux. Leave it out."
        )
    import resource  # POSIX only

    # Private writable memory: address space would count what CUDA merely reserves.
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, in Python, in torch on a CPU or on an accelerator."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Whether an error's message, or a dead process's last line, is one that lack of memory leaves."""
    return any(words in text for words in _OUT_OF_MEMORY)


def _installed(package: str) -> str | None:
    """Its version, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
