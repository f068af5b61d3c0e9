"""Weight Standardization by the compiled kernels: Group Norm of the filters, each a sample of one group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchfree import _core
from batchfree.torch import _compiled_nodes, _formula
from batchfree.torch._eligibility import ELEMENTS
from batchfree.torch._kernel import needs_formula

__all__ = ["Plan", "backward", "dense", "differentiable_backward", "forward", "standardize_weight"]


class Plan:
    """What follows from a call's shape, type and settings alone: the same for all calls of one kind."""

    __slots__ = ("copies", "eps", "filters", "problem", "variant")

    def __init__(self, weight: Tensor, variant: str, eps: float, threads: int) -> None:
        """`weight` gives shape, strides and dtype; its values play no part, and it may have none."""
        self.copies = dense(weight) is not weight
        self.filters = weight.shape[0]
        self.variant = variant
        self.eps = eps
        # Every filter a sample of one group: whatever the order of the fan-in, it is one run in memory.
        self.problem = _core.Problem(
            self.filters,
            1,
            weight.numel() // self.filters,
            1,
            False,
            ELEMENTS[weight.dtype],
            0,
            0,
            variant == "qiao",
            eps,
            threads,
        )


def standardize_weight(weight: Tensor, plan: Plan) -> Tensor:
    """The standardised filters by the kernels. `serves(weight)`, and the arguments are checked and those of `plan`."""
    if plan.copies:
        weight = weight.contiguous()
    if torch.is_grad_enabled() and weight.requires_grad:
        nodes = _compiled_nodes.nodes
        if nodes is not None:
            return nodes.standardize_weight(weight, plan.variant == "qiao", plan.eps)
        output: Tensor = _StandardizeWeight.apply(weight, plan)
        return output
    return _forward(plan, weight, 0)


class _StandardizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, plan: Plan) -> Tensor:
        moments = _core.Doubles(2 * plan.filters)
        ctx.save_for_backward(weight)
        ctx.settings = plan, moments
        return _forward(plan, weight, moments.address)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None]:
        (weight,) = ctx.saved_tensors
        plan, moments = ctx.settings
        if needs_formula(weight, grad_output):
            return *differentiable_backward(grad_output, weight, plan.variant, plan.eps), None
        return _backward(plan, grad_output, dense(weight), moments.address), None  # hooks may have moved values


def forward(weight: Tensor, variant: str, eps: float) -> tuple[Tensor, Tensor]:
    """The standardised filters, and the moments that `backward` needs; any strides, no autograd."""
    weight = dense(weight)
    moments = torch.empty(2 * weight.shape[0], dtype=torch.float64)
    if weight.numel() == 0:
        return torch.empty_like(weight), moments
    return _forward(Plan(weight, variant, eps, torch.get_num_threads()), weight, moments.data_ptr()), moments


def backward(grad_output: Tensor, weight: Tensor, moments: Tensor, variant: str, eps: float) -> Tensor:
    """The gradient of `weight`, from what `forward` was given and gave."""
    weight = dense(weight)
    if weight.numel() == 0:
        return torch.empty_like(weight)
    return _backward(Plan(weight, variant, eps, torch.get_num_threads()), grad_output, weight, moments.data_ptr())


def _forward(plan: Plan, weight: Tensor, moments: int) -> Tensor:
    output = torch.empty_like(weight)
    _core.forward(plan.problem, weight.data_ptr(), 0, 0, 0, output.data_ptr(), moments)
    return output


def _backward(plan: Plan, grad_output: Tensor, weight: Tensor, moments: int) -> Tensor:
    if grad_output.stride() != weight.stride():
        grad_output = torch.empty_like(weight).copy_(grad_output)
    grad = torch.empty_like(weight)
    _core.backward(plan.problem, grad_output.data_ptr(), weight.data_ptr(), 0, 0, 0, moments, grad.data_ptr(), 0, 0, 0)
    return grad


def differentiable_backward(grad_output: Tensor, weight: Tensor, variant: str, eps: float) -> tuple[Tensor]:
    """The gradient of `weight` by torch's operators; in grad mode a function of it and of `grad_output`."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        output = _formula.standardize_weight(weight, variant, eps)
    (gradient,) = torch.autograd.grad(output, weight, grad_output, create_graph=create_graph)
    return (gradient,)


def dense(weight: Tensor) -> Tensor:
    """`weight` with every filter's values side by side."""
    if weight.is_contiguous() or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)):
        return weight
    return weight.contiguous()
