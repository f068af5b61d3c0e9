"""What the compiled kernels are doing on this machine, for people and bug reports."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from batchfree import _core
from batchfree.errors import ArgumentError
from batchfree.torch import _compiled_nodes, _eligibility

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
    autograd_nodes: Literal["C++", "Python"]  # in use

    def __str__(self) -> str:
        lines = [
            f"kernels: {self.instruction_set}, built by {self.compiler}",
            f"threads: {self.threads}, from {self.threading_runtime or 'no OpenMP runtime, so one'}",
            f"autograd nodes: {self.autograd_nodes}",
        ]
        lines += [f"not in use: {path}, because {'; '.join(reasons)}" for path, reasons in self.not_in_use.items()]
        return "\n".join(lines)


def kernel_info(example: Tensor | None = None) -> KernelInfo:
    """Which kernels `group_norm` would use for `example` right now, and why not the others.

    Args:
        example: an input; a small float32 CPU tensor where `None`.

    Raises:
        ArgumentError: the environment variable BATCHFREE_ISA names an instruction set that cannot run here.

    >>> kernel_info().instruction_set in ("baseline", "avx2", "avx512", "neon")
    True
    """
    try:
        used = _core.instruction_set()
    except ValueError as error:  # BATCHFREE_ISA names one that cannot run here
        raise ArgumentError(str(error)) from None
    threads, runtime = torch.get_num_threads(), _core.threading_runtime()
    reasons = {f"instruction set {name}": [why] for name, why in _other_instruction_sets(used)}
    against_threads = [
        *(["torch is set to one thread"] if threads == 1 else []),
        *(["no OpenMP runtime is loaded"] if not runtime else []),
    ]
    if against_threads:
        reasons["several threads"] = against_threads
    against = _eligibility.reasons_against(torch.empty(1, 2, 2) if example is None else example)
    path = "the compiled kernels" if against else "torch's own operators"
    reasons[path] = against or ["the compiled kernels serve this tensor"]
    if _compiled_nodes.reason_against:
        reasons["autograd nodes in C++"] = [_compiled_nodes.reason_against]
    if not torch.compiler.is_dynamo_compiling():
        reasons["the kernels as operators of a compiled graph"] = ["torch.compile is not tracing"]
    nodes: Literal["C++", "Python"] = "Python" if _compiled_nodes.nodes is None else "C++"
    return KernelInfo(used, _core.compiler(), threads, runtime, reasons, nodes)


def _other_instruction_sets(used: str) -> Iterator[tuple[str, str]]:
    available, machine = _core.instruction_sets(), platform.machine()
    is_arm = machine.lower() in ("aarch64", "arm64")
    for name in _WIDEST_FIRST:
        if name == used:
            continue
        if name not in available and is_arm != (name == "neon"):
            yield name, f"this machine is {machine}"
        elif name not in available:
            yield name, "this processor or its operating system lacks it"
        elif available.index(name) < available.index(used):
            yield name, f"{used} is wider"
        else:
            yield name, f"BATCHFREE_ISA asks for {used}"
