"""The operators' formulas in torch's own operators: what tracers, other devices and second derivatives get."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["activate", "apply", "group_norm", "standardize_weight"]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """act(GN(input) [+ residual]), of standard operators only, so that an exported graph can be read everywhere."""
    # Not F.group_norm: its guard against one value per group counts the batch.
    output = torch.group_norm(input, num_groups, weight, bias, eps, torch.backends.cudnn.enabled)
    if residual is not None:
        output = output + residual
    return activate(output, activation)


def apply(
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """act((input - mean) * rstd * weight + bias [+ residual]) with statistics (N, G) in float64."""
    samples, groups = mean.shape
    channels = input.shape[1]
    compute = torch.promote_types(input.dtype, torch.float32)

    def per_channel(values: Tensor) -> Tensor:  # (N, G) as (N, C)
        return values[:, :, None].expand(samples, groups, channels // groups).reshape(samples, channels)

    def per_element(values: Tensor) -> Tensor:
        return values.to(compute).reshape(samples, channels, *(1,) * (input.dim() - 2))

    scale = per_channel((variance + eps).rsqrt())
    if weight is not None:
        scale = scale * weight
    # input - rounded is exact near the mean; what the rounding lost goes into the shift.
    rounded = mean.to(compute)
    shift = -per_channel(mean - rounded) * scale
    if bias is not None:
        shift = shift + bias
    output = (input - per_element(per_channel(rounded))) * per_element(scale) + per_element(shift)
    if residual is not None:
        output = output + residual
    return activate(output, activation).to(input.dtype)


def activate(x: Tensor, activation: str | None) -> Tensor:
    """act(x)."""
    if activation == "relu":
        return F.relu(x)
    if activation == "silu":
        return F.silu(x)
    if activation == "gelu":
        return F.gelu(x)
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return x


def standardize_weight(weight: Tensor, variant: str, eps: float) -> Tensor:
    """Each filter with mean 0 and deviation 1, by the variant's formula."""
    if variant == "bit":
        # Layer Norm of a filter is the same formula, in one fused operator with float32 statistics.
        return F.layer_norm(weight, weight.shape[1:], eps=eps)
    axes = tuple(range(1, weight.dim()))
    deviation, mean = torch.std_mean(weight, dim=axes, correction=1, keepdim=True)
    return (weight - mean) / (deviation + eps)
