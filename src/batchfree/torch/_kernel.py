"""Group Norm by the compiled kernels: the memory they work on, and their gradients.

`_eligibility` says which calls they serve; `_formula` does the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from batchfree import _core
from batchfree.torch import _compiled_nodes, _formula
from batchfree.torch._eligibility import ELEMENTS, agrees, is_plain_eager, is_readable

__all__ = [
    "Plan",
    "apply",
    "backward",
    "dense",
    "differentiable_backward",
    "forward",
    "group_norm",
    "moments",
    "needs_formula",
]

_ACTIVATIONS = {None: 0, "relu": 1, "silu": 2, "gelu": 3, "gelu_tanh": 4}


class Plan:
    """What follows from a call's shapes, types and settings alone: the same for all calls of one kind."""

    __slots__ = ("activation", "copies_to", "eps", "is_channels_last", "num_groups", "num_moments", "problem", "rounds")

    def __init__(
        self,
        x: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1.0,
        activation: str | None = None,
        *,
        threads: int,
    ) -> None:
        """The tensors give shape, strides and dtype; their values play no part, and they may have none."""
        arranged, self.is_channels_last = dense(x)
        self.copies_to = None if arranged is x else _LAST[x.dim()] if self.is_channels_last else torch.contiguous_format
        samples, channels = x.shape[:2]
        parameter = weight if weight is not None else bias  # if both are given, of one dtype
        self.rounds = parameter is not None and parameter.dtype not in (torch.float32, torch.float64)
        self.problem = _core.Problem(
            samples,
            channels,
            x.numel() // (samples * channels),
            num_groups,
            self.is_channels_last,
            ELEMENTS[x.dtype],
            0 if parameter is None else ELEMENTS[parameter.dtype],
            _ACTIVATIONS[activation],
            False,
            eps,
            threads,
        )
        self.num_moments = 2 * samples * num_groups
        self.num_groups = num_groups
        self.activation = activation
        self.eps = eps


def group_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, plan: Plan) -> Tensor:
    """act(GN(x) [+ residual]) by the kernels. `serves(x)`, and the arguments are checked and are those of `plan`."""
    if plan.copies_to is not None:
        x = x.contiguous(memory_format=plan.copies_to)
    weight, bias = _side_by_side(weight), _side_by_side(bias)
    if residual is not None:
        residual = _like(residual, plan)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        nodes = _compiled_nodes.nodes
        if nodes is not None:
            return nodes.group_norm(x, weight, bias, residual, plan.num_groups, plan.eps, _ACTIVATIONS[plan.activation])
        output: Tensor = _GroupNorm.apply(x, weight, bias, residual, plan)
        return output
    return _forward(plan, x, weight, bias, residual, 0)


def forward(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output, and the moments that `backward` needs; any strides, no autograd."""
    x, _ = dense(x)
    moments = torch.empty(2 * x.shape[0] * num_groups, dtype=torch.float64)
    if x.numel() == 0:
        return torch.empty_like(x), moments
    plan = Plan(x, num_groups, weight, bias, eps, activation, threads=torch.get_num_threads())
    skip = None if residual is None else _like(residual, plan)
    return _forward(plan, x, _side_by_side(weight), _side_by_side(bias), skip, moments.data_ptr()), moments


def backward(
    grad_output: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    moments: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias and residual where `wanted`, from what `forward` was given and gave."""
    x, _ = dense(x)
    if x.numel() == 0:
        return tuple(
            torch.zeros_like(t) if w and t is not None else None
            for t, w in zip((x, weight, bias, x), wanted, strict=True)
        )
    plan = Plan(x, num_groups, weight, bias, eps, activation, threads=torch.get_num_threads())
    skip = None if residual is None or activation is None else _like(residual, plan)
    weight, bias = _side_by_side(weight), _side_by_side(bias)
    return _backward(plan, grad_output, x, weight, bias, skip, moments.data_ptr(), wanted)


def _forward(
    plan: Plan, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, moments: int
) -> Tensor:
    output = torch.empty_like(x)
    _core.forward(
        plan.problem,
        x.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        output.data_ptr(),
        moments,
    )
    return output


class _GroupNorm(torch.autograd.Function):
    """Keeps the input and the statistics; the activation's derivative is computed again from them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, plan: Plan
    ) -> Tensor:
        moments = _core.Doubles(plan.num_moments)
        output = _forward(plan, x, weight, bias, residual, moments.address)
        # Without an activation nothing depends on the residual.
        ctx.save_for_backward(x, weight, bias, None if plan.activation is None else residual)
        ctx.settings = plan, moments
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual = ctx.saved_tensors
        plan, moments = ctx.settings
        wanted = ctx.needs_input_grad
        if needs_formula(x, grad_output, residual):
            arguments = x, plan.num_groups, weight, bias, plan.eps, plan.activation, residual
            return *differentiable_backward(grad_output, *arguments, wanted), None
        # Hooks may have moved the values of what was saved.
        x, weight, bias = _like(x, plan), _side_by_side(weight), _side_by_side(bias)
        residual = None if residual is None else _like(residual, plan)
        return *_backward(plan, grad_output, x, weight, bias, residual, moments.address, wanted[:4]), None


def _backward(
    plan: Plan,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,  # None without an activation: then its gradient is `grad_output`
    moments: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    wants_input, wants_weight, wants_bias, wants_residual = wanted
    upstream = _like(grad_output, plan)
    through = wants_residual and residual is not None
    grad_input = torch.empty_like(x) if wants_input or through else None
    grad_residual = torch.empty_like(x) if through else None
    grad_weight = _room_for_sums(weight, plan) if wants_weight and weight is not None else None
    grad_bias = _room_for_sums(bias, plan) if wants_bias and bias is not None else None
    _core.backward(
        plan.problem,
        upstream.data_ptr(),
        x.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        moments,
        0 if grad_input is None else grad_input.data_ptr(),
        0 if grad_residual is None else grad_residual.data_ptr(),
        0 if grad_weight is None else grad_weight.data_ptr(),
        0 if grad_bias is None else grad_bias.data_ptr(),
    )
    if plan.rounds:  # then the parameters' dtype is that of `x`
        grad_weight = None if grad_weight is None else grad_weight.to(x.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(x.dtype)
    return (
        grad_input if wants_input else None,
        grad_weight,
        grad_bias,
        (grad_residual if through else upstream) if wants_residual else None,
    )


def _room_for_sums(parameter: Tensor, plan: Plan) -> Tensor:
    """The core adds in float64 and rounds to float32 at least; the gradients of 16-bit parameters round once more."""
    return torch.empty_like(parameter, dtype=torch.float32) if plan.rounds else torch.empty_like(parameter)


def differentiable_backward(
    grad_output: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of x, weight, bias and residual by torch's operators, where `wanted`.

    In grad mode they are functions of those tensors and of `grad_output`.
    """
    gradients: list[Tensor | None] = [None] * 4
    leaves = (x, weight, bias, residual)
    asked = {i: leaf for i, leaf in enumerate(leaves) if wanted[i] and leaf is not None}
    if wanted[3] and activation is None:
        gradients[3] = grad_output
    if asked:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            output = _formula.group_norm(x, num_groups, weight, bias, eps, activation, residual)
        found = torch.autograd.grad(output, [*asked.values()], grad_output, create_graph=create_graph)
        for i, gradient in zip(asked, found, strict=True):
            gradients[i] = gradient
    return gradients


def moments(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (N, G) in float64. `serves(x)`."""
    x, _ = dense(x)
    plan = Plan(x, num_groups, threads=torch.get_num_threads())
    found = torch.empty(2, x.shape[0], num_groups, dtype=torch.float64)
    _core.moments(plan.problem, x.data_ptr(), 0, 0, 0, 0, found.data_ptr())
    return found[0], found[1]


def apply(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """act((x - mean) * rstd * weight + bias [+ residual]) by the kernels, without gradients. `serves(x)`."""
    x, _ = dense(x)
    weight, bias = _side_by_side(weight), _side_by_side(bias)
    plan = Plan(x, mean.shape[1], weight, bias, eps, activation, threads=torch.get_num_threads())
    statistics = torch.stack([mean.double(), variance.double()])
    output = torch.empty_like(x)
    skip = None if residual is None else _like(residual, plan)
    _core.apply(
        plan.problem,
        x.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if skip is None else skip.data_ptr(),
        output.data_ptr(),
        statistics.data_ptr(),
    )
    return output


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """`x` with its values side by side in one of the two layouts, and whether that is channels-last.

    A strided tensor is copied, to the layout that torch would choose: channels-last if its channels are adjacent.
    """
    if x.is_contiguous():
        return x, False
    last = _LAST.get(x.dim())
    if last is not None:
        if x.is_contiguous(memory_format=last):
            return x, True
        if x.stride(1) == 1 and x.shape[1] > 1:
            return x.contiguous(memory_format=last), True
    return x.contiguous(), False


def needs_formula(x: Tensor, upstream: Tensor, residual: Tensor | None = None) -> bool:
    """Whether a gradient must be made of torch's operators.

    So it is where somebody differentiates it, where a mode or a transform looks on, and where a hook on saved tensors
    gave something else back than what was saved.
    """
    return (
        torch.is_grad_enabled()
        or not is_plain_eager()
        or not is_readable(x)
        or not agrees(upstream, x)
        or (residual is not None and not agrees(residual, x))
    )


def _side_by_side(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.contiguous()


def _like(tensor: Tensor, plan: Plan) -> Tensor:
    return tensor.contiguous(memory_format=_LAST[tensor.dim()]) if plan.is_channels_last else tensor.contiguous()


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
