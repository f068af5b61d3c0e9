"""What the compiled kernels are doing on this machine, for people and bug reports."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batchfree import _core
from batchfree.torch import _kernel

__all__ = ["KernelInfo", "kernel_info"]

_WIDEST_FIRST = ("avx512", "avx2", "neon", "baseline")


@dataclass(frozen=True)
class KernelInfo:
    """The answer of `kernel_info`; `print` it."""

    instruction_set: str  # in use
    compiler: str
    threads: int  # torch's own number
    threading_runtime: str  # path of the OpenMP library that torch and the kernels share; "" is none: one thread
    not_in_use: dict[str, list[str]]  # path -> why it is not taken

    def __str__(self) -> str:
        lines = [
            f"kernels: {self.instruction_set}, built by {self.compiler}",
            f"threads: {self.threads}, from {self.threading_runtime or 'no OpenMP runtime, so one'}",
        ]
        lines += [f"not in use: {path}, because {'; '.join(reasons)}" for path, reasons in self.not_in_use.items()]
        return "\n".join(lines)


def kernel_info(example: Tensor | None = None) -> KernelInfo:
    """Which kernels `group_norm` would use for `example` right now, and why not the others.

    Args:
        example: an input; a small float32 CPU tensor where `None`.

    >>> kernel_info().instruction_set in ("baseline", "avx2", "avx512", "neon")
    True
    """
    used, available = _core.instruction_set(), _core.instruction_sets()
    reasons: dict[str, list[str]] = {}
    for name in _WIDEST_FIRST:
        if name == used:
            continue
        if name not in available:
            reasons[f"instruction set {name}"] = ["this processor, its operating system or this build lacks it"]
        elif available.index(name) < available.index(used):
            reasons[f"instruction set {name}"] = [f"{used} is wider"]
        else:
            reasons[f"instruction set {name}"] = [f"BATCHFREE_ISA asks for {used}"]
    against = _kernel.reasons_against(torch.empty(1, 2, 2) if example is None else example)
    path = "the compiled kernels" if against else "torch's own operators"
    reasons[path] = against or ["the compiled kernels serve this tensor"]
    return KernelInfo(used, _core.compiler(), torch.get_num_threads(), _core.threading_runtime(), reasons)
