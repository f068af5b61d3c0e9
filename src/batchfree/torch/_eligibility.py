"""Which calls the compiled kernels serve: those with dense CPU tensors in plain eager mode."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = [
    "ELEMENTS",
    "PLAIN",
    "agrees",
    "is_plain_eager",
    "is_readable",
    "reasons_against",
    "serves",
    "serves_kind",
    "without_values",
]

# The numbers are those of the enumerations in cpp/element_types.hpp.
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
#: Subclasses may keep their values elsewhere, or want to see the operators.
PLAIN = (Tensor, nn.Parameter)
_C: Any = torch._C
# Bound once: a small norm takes little longer than finding them by name.
_is_compiling = torch.compiler.is_compiling
_is_tracing = _C._is_tracing
_are_functorch_transforms_active = _C._are_functorch_transforms_active
_len_torch_dispatch_stack = _C._len_torch_dispatch_stack
_len_torch_function_stack = _C._len_torch_function_stack
_has_storage = _C._has_storage


def is_plain_eager() -> bool:
    """Whether operators run as they are called: no tracer, exporter, functional transform or forward-mode AD."""
    return not (
        _is_compiling()
        or _is_tracing()
        or _are_functorch_transforms_active()
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or forward_ad._current_level >= 0
    )


def serves(tensor: Tensor) -> bool:
    """Whether the kernels can read `tensor`; its memory format is then handled."""
    return is_readable(tensor) and serves_kind(tensor)


def is_readable(tensor: Tensor) -> bool:
    """The part of `serves` that does not follow from shape and dtype: values in the CPU's memory, as they are."""
    return (
        type(tensor) in PLAIN
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        and _has_storage(tensor)
    )


def serves_kind(tensor: Tensor) -> bool:
    """The part of `serves` that follows from shape and dtype."""
    return tensor.dtype in ELEMENTS and tensor.numel() > 0


def without_values(shape: torch.Size, strides: tuple[int, ...] | Literal[True], dtype: torch.dtype) -> Tensor:
    """What `shape`, `strides` and `dtype` say of a tensor; `True` for the strides of a contiguous one."""
    if strides is True:
        return torch.empty(shape, dtype=dtype, device="meta")
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def agrees(residual: Tensor, x: Tensor) -> bool:
    """Whether the kernels that serve `x` can add `residual`: elsewhere torch's rules of type promotion hold."""
    return residual.shape == x.shape and residual.dtype is x.dtype and is_readable(residual)


def reasons_against(tensor: Tensor) -> list[str]:
    """Why a call with `tensor` would not use the kernels; empty where it would."""
    checks = [
        (_is_compiling(), "torch.compile or torch.export is tracing"),
        (_is_tracing(), "torch.jit or the ONNX exporter is tracing"),
        (_are_functorch_transforms_active(), "a torch.func transform (vmap, grad, jvp, ...) is active"),
        (_len_torch_dispatch_stack() > 0, "a TorchDispatchMode is active"),
        (_len_torch_function_stack() > 0, "a TorchFunctionMode is active"),
        (forward_ad._current_level >= 0, "forward-mode AD is active"),
        (type(tensor) not in PLAIN, f"the tensor is a {type(tensor).__name__}, a subclass"),
        (not tensor.is_cpu, f"the tensor is on {tensor.device}; the kernels are for the CPU"),
        (tensor.dtype not in ELEMENTS, f"the dtype is {tensor.dtype}"),
        (tensor.layout is not torch.strided, f"the layout is {tensor.layout}"),
        (tensor.numel() == 0, "the tensor is empty"),
        (tensor.layout is torch.strided and tensor.is_neg(), "the tensor is a negated view"),
        (tensor._is_zerotensor() or not _has_storage(tensor), "the tensor has no memory of its own"),
    ]
    return [reason for applies, reason in checks if applies]
