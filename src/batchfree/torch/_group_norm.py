"""Group Norm with the activation and the residual that follow it."""

from __future__ import annotations

import functools
import math
from typing import Literal, TypeAlias, get_args

import torch
import torch.fx
from torch import Tensor, nn

from batchfree.errors import ArgumentError, unknown_name
from batchfree.groups import check_values_per_group, resolve_num_groups
from batchfree.torch import _eligibility, _formula, _kernel, _operators

__all__ = ["Activation", "GroupNorm", "group_norm"]

#: "gelu" is the form with the error function, "gelu_tanh" the tanh approximation.
Activation: TypeAlias = Literal["relu", "silu", "gelu", "gelu_tanh"]
_ACTIVATIONS = get_args(Activation)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`act((input - mean) / sqrt(var + eps) * weight + bias [+ residual])`, statistics per (sample, group).

    Args:
        input: (N, C, *spatial) with any number of spatial dimensions, floating point.
        num_groups: G, a divisor of C. 1 is Layer Norm over (C, *spatial); C is Instance Norm.
        weight, bias: (C,); 1 and 0 where `None`.
        eps: added to the biased variance, inside the root; positive.
        activation: applied last: `None`, "relu", "silu", "gelu" or "gelu_tanh".
        residual: shape of `input`; added before the activation.

    Returns:
        Shape and dtype of `input`; on the CPU also its memory format.

    Raises:
        GroupError: G does not divide C, or each group has one value per sample.
        ArgumentError: a shape, `eps`, the dtype of `input` or the name of the activation is not allowed.

    Differs from `torch.nn.functional.group_norm`: that one counts the batch in its guard against one value per group,
    and so returns zeros for an (N >= 2, C, 1, 1) input with G = C (pytorch#19250); and it allows `eps=0`.

    Source: Wu & He 2018 (arXiv 1803.08494), Eq. 1, 2, 6 and 7.

    >>> x = torch.randn(2, 64, 8, 8)
    >>> group_norm(x, 4, torch.ones(64), torch.zeros(64), activation="relu").shape
    torch.Size([2, 64, 8, 8])
    """
    if (
        _eligibility.is_plain_eager()
        and _eligibility.is_readable(input)
        and (residual is None or _eligibility.agrees(residual, input))
        and (weight is None or _eligibility.is_readable(weight))
        and (bias is None or _eligibility.is_readable(bias))
    ):
        plan = _plan(
            input.shape,
            input.is_contiguous() or input.stride(),
            input.dtype,
            num_groups,
            None if weight is None else weight.shape,
            None if weight is None else weight.dtype,
            None if bias is None else bias.shape,
            None if bias is None else bias.dtype,
            eps,
            activation,
            torch.get_num_threads(),
        )
        if plan is not None:
            return _kernel.group_norm(input, weight, bias, residual, plan)
    if not torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]  # there sizes are tensors
        check_arguments(input, num_groups, weight, bias, eps, activation, residual)
        _check_values(input, num_groups)
    if _operators.is_wanted() and _operators.serves(input) and (residual is None or residual.dtype == input.dtype):
        return _operators.group_norm(input, num_groups, weight, bias, eps, activation, residual)
    return _formula.group_norm(input, num_groups, weight, bias, eps, activation, residual)


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: torch.Size,
    strides: tuple[int, ...] | Literal[True],
    dtype: torch.dtype,
    num_groups: int,
    weight_shape: torch.Size | None,
    weight_dtype: torch.dtype | None,
    bias_shape: torch.Size | None,
    bias_dtype: torch.dtype | None,
    eps: float,
    activation: str | None,
    threads: int,
) -> _kernel.Plan | None:
    """Checks and prepares a call, once for all calls of one kind: a small norm takes less time than its checks."""
    like_input = _eligibility.without_values(shape, strides, dtype)
    weight = None if weight_shape is None else torch.empty(weight_shape, dtype=weight_dtype, device="meta")
    bias = None if bias_shape is None else torch.empty(bias_shape, dtype=bias_dtype, device="meta")
    check_arguments(like_input, num_groups, weight, bias, eps, activation)
    _check_values(like_input, num_groups)
    if not _eligibility.serves_kind(like_input):
        return None
    return _kernel.Plan(like_input, num_groups, weight, bias, eps, activation, threads=threads)


# One node of the graph that torch.fx traces, as torch's own layer is.
torch.fx.wrap("group_norm")


class GroupNorm(nn.GroupNorm):
    """Group Norm as a layer: `group_norm` with weight and bias of its own.

    y = act((x - mean) / sqrt(var + eps) * weight + bias [+ residual]): mean and biased variance over the C / G channels
    of a group and all spatial elements of one sample, never over the batch, in training and in evaluation alike.
    weight and bias are (C,). A `torch.nn.GroupNorm` in `isinstance`, in `state_dict` and in numbers.

    Args:
        num_groups: G, a divisor of `num_channels`.
        num_channels: C.
        eps: added to the variance, inside the root; positive.
        affine: `False` leaves out weight and bias.
        device, dtype: of the parameters.
        bias: `False` leaves out the bias.
        activation: `None`, "relu", "silu", "gelu" or "gelu_tanh".

    Raises:
        GroupError: G does not divide C.
        ArgumentError: `eps` or the name of the activation is not allowed.

    Source: Wu & He 2018 (arXiv 1803.08494).

    >>> norm = GroupNorm(4, 64, activation="relu")
    >>> x = torch.randn(2, 64, 8, 8)
    >>> norm(x, residual=x).shape
    torch.Size([2, 64, 8, 8])
    """

    activation: Activation | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: Activation | None = None,
    ) -> None:
        resolve_num_groups(num_channels, num_groups)
        _check_eps(eps)
        _check_activation(activation)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        if not bias:  # torch's own argument for it is younger than the oldest torch we serve
            self.register_parameter("bias", None)
        self.activation = activation

    def reset_parameters(self) -> None:
        """Weight 1 and bias 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalises `input` (N, C, *spatial); `residual`, of its shape, is added before the activation."""
        return group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, activation=self.activation, residual=residual
        )

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        shown = super().extra_repr()
        return shown if self.activation is None else f"{shown}, activation={self.activation!r}"


def check_arguments(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> None:
    """Refuses what the operators cannot work on, before any work."""
    _check_input(input, eps, residual)
    if (input.is_cpu or input.is_meta) and not input.is_contiguous():
        check_size(input)
    if num_groups < 1 or input.shape[1] % num_groups:
        resolve_num_groups(input.shape[1], num_groups)
    _check_parameters(input, weight, bias)
    _check_activation(activation)


def _check_values(input: Tensor, num_groups: int) -> None:
    if input.shape[1] == num_groups:  # else every group has several channels
        check_values_per_group(num_groups, num_groups, input.shape[2:])


# All that 57-bit addresses, the longest of any processor, leave to a process; sizes and offsets then fit 64 bits.
_MOST_BYTES = 2**56


def check_size(tensor: Tensor) -> None:
    """Refuses a tensor, expanded from a smaller one, that no memory could hold side by side."""
    # Not numel(), which itself raises from 2**63 on.
    if not torch.compiler.is_compiling() and math.prod(tensor.shape) * tensor.element_size() > _MOST_BYTES:
        raise ArgumentError(
            f"a tensor of shape {tuple(tensor.shape)} was given, {math.prod(tensor.shape)} elements that are views of "
            f"fewer. Side by side they may take {_MOST_BYTES} bytes at most. Expand it to a smaller shape."
        )


def _check_input(input: Tensor, eps: float, residual: Tensor | None) -> None:
    if input.dim() < 2:
        raise ArgumentError(
            f"an input of shape {tuple(input.shape)} was given. It must be (N, C) or (N, C, *spatial). "
            f"Add the missing dimensions, for instance with input.unsqueeze(0)."
        )
    if not input.is_floating_point():
        raise ArgumentError(
            f"an input of dtype {input.dtype} was given. It must be floating point. Pass input.float()."
        )
    if residual is not None and residual.shape != input.shape:
        raise ArgumentError(
            f"a residual of shape {tuple(residual.shape)} was given for an input of shape {tuple(input.shape)}. "
            f"They must be equal: it is added element by element. Expand or project the residual first."
        )
    if residual is not None and residual.device != input.device:
        raise ArgumentError(
            f"the residual is on {residual.device} and the input on {input.device}. They must be on one device. "
            f"Move one of them with .to()."
        )
    _check_eps(eps)


def _check_parameters(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is None:
            continue
        if parameter.shape != input.shape[1:2]:
            raise ArgumentError(
                f"{name} has shape {tuple(parameter.shape)} for an input of {input.shape[1]} channels. "
                f"It must be ({input.shape[1]},). Pass one value per channel."
            )
        if parameter.device != input.device:
            raise ArgumentError(
                f"{name} is on {parameter.device} and the input on {input.device}. They must be on one device. "
                f"Move the module with .to({str(input.device)!r})."
            )
        if parameter.dtype != input.dtype and not (parameter.dtype == torch.float32 and input.element_size() == 2):
            raise ArgumentError(
                f"{name} is {parameter.dtype} and the input {input.dtype}. {name} must have the input's dtype, or "
                f"float32 where that is a 16-bit type. Convert one of them with .to()."
            )
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        raise ArgumentError(
            f"weight is {weight.dtype} and bias {bias.dtype}. They must have one dtype. Convert one of them with .to()."
        )


def _check_eps(eps: float) -> None:
    if not eps > 0:
        raise ArgumentError(
            f"eps={eps!r} was given. It must be positive: it keeps a constant group finite. Pass 1e-5, the default."
        )


def _check_activation(activation: str | None) -> None:
    if activation is not None and activation not in _ACTIVATIONS:
        raise ArgumentError(unknown_name("activation", str(activation), _ACTIVATIONS))
