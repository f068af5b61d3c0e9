"""The kernels as operators of torch's dispatcher: what `torch.compile` puts into its graphs.

To the compiler they are opaque, because on the CPU its own code for Group Norm is 2 to 10 times slower than eager
operators. Eager calls go past them, because the dispatcher costs 6 us a call; exported graphs hold torch's operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from batchfree.torch import _filter_kernel, _kernel
from batchfree.torch._eligibility import ELEMENTS

__all__ = ["group_norm", "is_wanted", "serves", "standardize_weight"]


def is_wanted() -> bool:
    """Whether `torch.compile` is tracing, and neither an exporter nor a transform inside it, which have no rules."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting() and not _is_transformed()


def _is_transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


# What torch.compiler.assume_constant_result does, without its import of the whole compiler: within one trace it is one.
_is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def serves(tensor: Tensor) -> bool:
    """Whether the operators take `tensor`. Unlike the kernels alone they take any strides, and an empty batch."""
    return tensor.is_cpu and tensor.dtype in ELEMENTS and tensor.layout is torch.strided


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """act(GN(input) [+ residual]) as one node of a graph."""
    output: Tensor
    output, _ = torch.ops.batchfree.group_norm(input, num_groups, weight, bias, eps, activation, residual)
    return output


def standardize_weight(weight: Tensor, variant: str, eps: float) -> Tensor:
    """The standardised filters as one node of a graph."""
    output: Tensor
    output, _ = torch.ops.batchfree.standardize_weight(weight, variant, eps)
    return output


def _define(schema: str, run: Any, fake: Any) -> None:
    name = "batchfree::" + schema.partition("(")[0]
    torch.library.define(name, schema[schema.index("(") :], tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(name, "cpu", run)
    torch.library.register_fake(name, fake)


# ---- group_norm ----


def _fake(input: Tensor, num_groups: int, *_: Any) -> tuple[Tensor, Tensor]:
    dense, _is_channels_last = _kernel.dense(input)
    return torch.empty_like(dense), input.new_empty(2 * input.shape[0] * num_groups, dtype=torch.float64)


def _run_backward(upstream: Tensor, input: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """An operator cannot return None: what is not wanted is an empty tensor."""
    found = _kernel.backward(upstream, input, *others)
    return tuple(input.new_empty(0) if gradient is None else gradient for gradient in found)


def _fake_backward(
    upstream: Tensor, input: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, *others: Any
) -> tuple[Tensor, ...]:
    *_, wanted = others
    dense, _is_channels_last = _kernel.dense(input)
    like = (dense, weight, bias, dense)
    return tuple(
        torch.empty_like(tensor, memory_format=torch.preserve_format if tensor is dense else torch.contiguous_format)
        if asked and tensor is not None
        else input.new_empty(0)
        for tensor, asked in zip(like, wanted, strict=True)
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, num_groups, weight, bias, eps, activation, residual = inputs
    # Without an activation nothing depends on the residual.
    ctx.save_for_backward(x, weight, bias, None if activation is None else residual, output[1])
    ctx.settings = num_groups, eps, activation


def _gradients(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, moments = ctx.saved_tensors
    num_groups, eps, activation = ctx.settings
    wanted = [ctx.needs_input_grad[i] for i in (0, 2, 3, 6)]
    found: Sequence[Tensor | None]
    if torch.is_grad_enabled():  # somebody differentiates the gradient
        found = _kernel.differentiable_backward(
            upstream, x, num_groups, weight, bias, eps, activation, residual, wanted
        )
    else:
        of_residual = wanted[3] and activation is not None
        found = torch.ops.batchfree.group_norm_backward(
            upstream, x, num_groups, weight, bias, eps, activation, residual, moments, [*wanted[:3], of_residual]
        )
        if wanted[3] and not of_residual:
            found = [*found[:3], upstream]
    of_input, of_weight, of_bias, of_residual_ = (g if w else None for g, w in zip(found, wanted, strict=True))
    return of_input, None, of_weight, of_bias, None, None, of_residual_


_SIGNATURE = "Tensor input, int num_groups, Tensor? weight, Tensor? bias, float eps, str? activation, Tensor? residual"
_define(f"group_norm({_SIGNATURE}) -> (Tensor, Tensor)", _kernel.forward, _fake)
_define(
    f"group_norm_backward(Tensor upstream, {_SIGNATURE}, Tensor moments, bool[4] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
torch.library.register_autograd("batchfree::group_norm", _gradients, setup_context=_keep)


# ---- standardize_weight ----


def _fake_standardize(weight: Tensor, variant: str, eps: float) -> tuple[Tensor, Tensor]:
    dense = _filter_kernel.dense(weight)
    return torch.empty_like(dense), weight.new_empty(2 * weight.shape[0], dtype=torch.float64)


def _fake_standardize_backward(upstream: Tensor, weight: Tensor, moments: Tensor, variant: str, eps: float) -> Tensor:
    return torch.empty_like(_filter_kernel.dense(weight))


def _keep_weight(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    weight, variant, eps = inputs
    ctx.save_for_backward(weight, output[1])
    ctx.settings = variant, eps


def _weight_gradient(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    weight, moments = ctx.saved_tensors
    variant, eps = ctx.settings
    if torch.is_grad_enabled():
        return *_filter_kernel.differentiable_backward(upstream, weight, variant, eps), None, None
    return torch.ops.batchfree.standardize_weight_backward(upstream, weight, moments, variant, eps), None, None


_define(
    "standardize_weight(Tensor weight, str variant, float eps) -> (Tensor, Tensor)",
    _filter_kernel.forward,
    _fake_standardize,
)
_define(
    "standardize_weight_backward(Tensor upstream, Tensor weight, Tensor moments, str variant, float eps) -> Tensor",
    _filter_kernel.backward,
    _fake_standardize_backward,
)
torch.library.register_autograd("batchfree::standardize_weight", _weight_gradient, setup_context=_keep_weight)
