"""A group's statistics as values of their own: measured on parts, merged, applied to parts.

An image in tiles, or spread over ranks, so gives the same answer as whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from batchfree.errors import ArgumentError
from batchfree.torch import _eligibility, _formula, _kernel
from batchfree.torch._group_norm import Activation, check_arguments

__all__ = ["Moments", "apply_moments", "merge_moments", "moments"]


class Moments(NamedTuple):
    """Mean and biased variance of `size` values, one pair per (sample, group), in float64."""

    size: int  # values per group: C / G * prod(spatial)
    mean: Tensor  # (N, G)
    variance: Tensor  # (N, G)


def moments(input: Tensor, num_groups: int) -> Moments:
    """The statistics that `group_norm` would normalise `input` with, differentiable.

    Args:
        input: (N, C, *spatial), floating point: a tile, or a rank's share, of what belongs together.
        num_groups: G, a divisor of C.

    Returns:
        mean and variance (N, G) in float64: float32 would lose 5e-4 of a mean of 1e4.

    Raises:
        GroupError: G does not divide C.
        ArgumentError: the shape or dtype of `input` is not allowed.

    Source: Wu & He 2018 (arXiv 1803.08494), Eq. 2 and 7.

    >>> moments(torch.ones(2, 8, 3, 3), 4).mean.shape
    torch.Size([2, 4])
    """
    check_arguments(input, num_groups)
    size = input[0].numel() // num_groups if len(input) else 0
    if _eligibility.is_plain_eager() and _eligibility.serves(input):
        mean, variance = _Moments.apply(input, num_groups)
    else:
        grouped = input.reshape(len(input), num_groups, -1).double()
        variance, mean = torch.var_mean(grouped, dim=2, correction=0)
    return Moments(size, mean, variance)


def merge_moments(*parts: Moments) -> Moments:
    """The moments of the union of disjoint parts, from the parts' moments alone, differentiable.

    m = sum m_i, mean = sum m_i mean_i / m, var = sum m_i (var_i + (mean_i - mean)^2) / m.

    Args:
        parts: at least one; of the same samples and groups.

    Raises:
        ArgumentError: no parts, or parts of different shapes.

    Source: Chan, Golub & LeVeque 1979, Eq. 2.1.

    >>> x = torch.randn(2, 8, 6, 6)
    >>> top, bottom = moments(x[:, :, :2], 4), moments(x[:, :, 2:], 4)
    >>> torch.allclose(merge_moments(top, bottom).variance, moments(x, 4).variance)
    True
    """
    shapes = {tuple(part.mean.shape) for part in parts}
    if len(shapes) != 1:
        raise ArgumentError(
            f"moments of {len(parts)} parts with shapes {sorted(shapes)} were given. There must be at least one, and "
            f"all of one (samples, groups). Measure every part of the same samples with the same num_groups."
        )
    size = sum(part.size for part in parts)
    shares = [part.size / size for part in parts]
    mean = torch.stack([share * part.mean for share, part in zip(shares, parts, strict=True)]).sum(0)
    spreads = [part.variance + (part.mean - mean).square() for part in parts]
    variance = torch.stack([share * spread for share, spread in zip(shares, spreads, strict=True)]).sum(0)
    return Moments(size, mean, variance)


def apply_moments(
    input: Tensor,
    moments: Moments,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`group_norm` with given statistics: `act((input - mean) / sqrt(var + eps) * weight + bias [+ residual])`.

    Args:
        input: (N, C, *spatial): a tile, or a rank's share.
        moments: of the whole that `input` is a part of; gradients flow into them.
        weight, bias, eps, activation, residual: as in `group_norm`.

    Returns:
        Shape, dtype and memory format of `input`.

    Raises:
        ArgumentError: as `group_norm`; or `moments` are of another number of samples.
        GroupError: the groups of `moments` do not divide the channels.

    >>> x = torch.randn(1, 8, 6, 6)
    >>> whole = moments(x, 4)
    >>> tiles = [apply_moments(tile, whole) for tile in x.split(2, dim=2)]
    >>> torch.allclose(torch.cat(tiles, dim=2), group_norm(x, 4), atol=1e-6)
    True
    """
    samples, num_groups = moments.mean.shape
    check_arguments(input, num_groups, weight, bias, eps, activation, residual)
    if samples != len(input):
        raise ArgumentError(
            f"moments of {samples} samples were given for an input of {len(input)}. They must be of the same samples. "
            f"Apply them to parts of the tensor they were measured on."
        )
    tensors = (input, weight, bias, residual, moments.mean, moments.variance)
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if (
        not wants_gradient
        and _eligibility.is_plain_eager()
        and _eligibility.serves(input)
        and (weight is None or type(weight) in _eligibility.PLAIN)
        and (bias is None or type(bias) in _eligibility.PLAIN)
        and (residual is None or _eligibility.agrees(residual, input))
    ):
        return _kernel.apply(input, moments.mean, moments.variance, weight, bias, eps, activation, residual)
    return _formula.apply(input, moments.mean, moments.variance, weight, bias, eps, activation, residual)


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
        mean, variance = _kernel.moments(x, num_groups)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor, None]:
        # Plain operators, so that it can be differentiated again: d mean = 1/m, d variance = 2 (x - mean) / m.
        x, mean = ctx.saved_tensors
        grouped = x.reshape(*mean.shape, -1)
        size = grouped.shape[2]
        rounded = mean.to(x.dtype)
        slope = grad_variance * (2 / size)
        offset = grad_mean / size - slope * (mean - rounded)
        gradient = (grouped - rounded[:, :, None]) * slope.to(x.dtype)[:, :, None] + offset.to(x.dtype)[:, :, None]
        return gradient.reshape(x.shape), None
