"""Weight Standardization by the compiled kernels: Group Norm of the filters, each a sample of one group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchfree import _core
from batchfree.torch import _formula
from batchfree.torch._eligibility import ELEMENTS

__all__ = ["backward", "dense", "differentiable_backward", "forward", "standardize_weight"]


def standardize_weight(weight: Tensor, variant: str, eps: float) -> Tensor:
    """The standardised filters by the kernels. `serves(weight)`, and the arguments are checked."""
    weight = dense(weight)
    problem = _problem(weight, variant, eps)
    if torch.is_grad_enabled() and weight.requires_grad:
        output: Tensor = _StandardizeWeight.apply(weight, problem, variant, eps)
        return output
    return _forward(problem, weight, 0)


class _StandardizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, problem: Any, variant: str, eps: float) -> Tensor:
        moments = _core.Doubles(2 * weight.shape[0])
        ctx.save_for_backward(weight)
        ctx.settings = problem, variant, eps, moments
        return _forward(problem, weight, moments.address)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None, None, None]:
        (weight,) = ctx.saved_tensors
        problem, variant, eps, moments = ctx.settings
        if torch.is_grad_enabled():
            return differentiable_backward(grad_output, weight, variant, eps), None, None, None
        return _backward(problem, grad_output, weight, moments.address), None, None, None


def forward(weight: Tensor, variant: str, eps: float) -> tuple[Tensor, Tensor]:
    """The standardised filters, and the moments that `backward` needs; any strides, no autograd."""
    weight = dense(weight)
    moments = torch.empty(2 * weight.shape[0], dtype=torch.float64)
    if weight.numel() == 0:
        return torch.empty_like(weight), moments
    return _forward(_problem(weight, variant, eps), weight, moments.data_ptr()), moments


def backward(grad_output: Tensor, weight: Tensor, moments: Tensor, variant: str, eps: float) -> Tensor:
    """The gradient of `weight`, from what `forward` was given and gave."""
    weight = dense(weight)
    if weight.numel() == 0:
        return torch.empty_like(weight)
    return _backward(_problem(weight, variant, eps), grad_output, weight, moments.data_ptr())


def _forward(problem: Any, weight: Tensor, moments: int) -> Tensor:
    output = torch.empty_like(weight)
    _core.forward(problem, weight.data_ptr(), 0, 0, 0, output.data_ptr(), moments)
    return output


def _backward(problem: Any, grad_output: Tensor, weight: Tensor, moments: int) -> Tensor:
    if grad_output.stride() != weight.stride():
        grad_output = torch.empty_like(weight).copy_(grad_output)
    grad = torch.empty_like(weight)
    _core.backward(problem, grad_output.data_ptr(), weight.data_ptr(), 0, 0, 0, moments, grad.data_ptr(), 0, 0, 0)
    return grad


def differentiable_backward(grad_output: Tensor, weight: Tensor, variant: str, eps: float) -> Tensor:
    """The gradient of `weight` as a function of it and of `grad_output`."""
    output = _formula.standardize_weight(weight, variant, eps)
    return torch.autograd.grad(output, weight, grad_output, create_graph=True)[0]


def _problem(weight: Tensor, variant: str, eps: float) -> Any:
    """Every filter a sample of one group: whatever the order of the fan-in, it is one run in memory."""
    filters = weight.shape[0]
    return _core.Problem(
        filters,
        1,
        weight.numel() // filters,
        1,
        False,
        ELEMENTS[weight.dtype],
        0,
        0,
        variant == "qiao",
        eps,
        torch.get_num_threads(),
    )


def dense(weight: Tensor) -> Tensor:
    """`weight` with every filter's values side by side."""
    if weight.is_contiguous() or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)):
        return weight
    return weight.contiguous()
