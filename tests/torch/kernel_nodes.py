"""Which of the nodes in an autograd graph are the kernels'."""

from __future__ import annotations

from torch import Tensor


def is_by_kernels(y: Tensor) -> bool:
    """Whether `y` was made by the compiled kernels, with an autograd node of either kind."""
    assert y.grad_fn is not None
    names = {f"_{one}Backward" for one in _NODES} | {f"torch::autograd::CppNode<batchfree::{one}>" for one in _NODES}
    return y.grad_fn.name() in names


_NODES = ("GroupNorm", "StandardizeWeight")
