"""Which calls the compiled kernels serve: those with dense CPU tensors in plain eager mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["ELEMENTS", "PLAIN", "agrees", "is_plain_eager", "reasons_against", "serves"]

# The numbers are those of the enumerations in cpp/element_types.hpp.
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
#: Subclasses may keep their values elsewhere, or want to see the operators.
PLAIN = (Tensor, nn.Parameter)
_FUNCTORCH: Any = torch._C._functorch


def is_plain_eager() -> bool:
    """Whether operators run as they are called: no tracer, exporter, functional transform or forward-mode AD."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or _FUNCTORCH.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or forward_ad._current_level >= 0
    )


def serves(tensor: Tensor) -> bool:
    """Whether the kernels can read `tensor`; its dtype and memory format are then handled."""
    return (
        type(tensor) in PLAIN
        and tensor.is_cpu
        and tensor.dtype in ELEMENTS
        and tensor.layout is torch.strided
        and tensor.numel() > 0
        and not tensor.is_neg()
    )


def agrees(residual: Tensor, x: Tensor) -> bool:
    """Whether the kernels can add `residual` to `x`: elsewhere torch's rules of type promotion hold."""
    return residual.dtype is x.dtype and serves(residual)


def reasons_against(tensor: Tensor) -> list[str]:
    """Why a call with `tensor` would not use the kernels; empty where it would."""
    checks = [
        (torch.compiler.is_compiling(), "torch.compile or torch.export is tracing"),
        (torch._C._get_tracing_state() is not None, "torch.jit or the ONNX exporter is tracing"),
        (_FUNCTORCH.peek_interpreter_stack() is not None, "a torch.func transform (vmap, grad, jvp, ...) is active"),
        (torch._C._len_torch_dispatch_stack() > 0, "a TorchDispatchMode is active"),
        (torch._C._len_torch_function_stack() > 0, "a TorchFunctionMode is active"),
        (forward_ad._current_level >= 0, "forward-mode AD is active"),
        (type(tensor) not in PLAIN, f"the tensor is a {type(tensor).__name__}, a subclass"),
        (not tensor.is_cpu, f"the tensor is on {tensor.device}; the kernels are for the CPU"),
        (tensor.dtype not in ELEMENTS, f"the dtype is {tensor.dtype}"),
        (tensor.layout is not torch.strided, f"the layout is {tensor.layout}"),
        (tensor.numel() == 0, "the tensor is empty"),
        (tensor.layout is torch.strided and tensor.is_neg(), "the tensor is a negated view"),
    ]
    return [reason for applies, reason in checks if applies]
