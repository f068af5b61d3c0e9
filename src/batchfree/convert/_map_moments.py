"""Moments of maps per (sample, channel): what the closed form of a norm's fit is computed from.

One reading of the maps serves every number of groups and every scale of the filters before them, and any number of
batches merge into what one big batch would give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from batchfree.torch import moments

__all__ = [
    "MapMoments",
    "Observation",
    "covariance",
    "group_moments",
    "joined",
    "map_moments",
    "over_samples",
    "shares",
    "varies",
]

#: A deviation below this share of its map's size is float32's rounding: the channel is constant.
DEAD_SHARE = 1e-6
#: The covariance needs both maps centred; in parts, the copies stay in the cache.
VALUES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class MapMoments:
    """Of one input of a norm; float64 on the CPU."""

    size: int  # spatial elements
    mean: Tensor  # (N, C), over space
    variance: Tensor  # (N, C)

    def over_samples(self) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) of the whole batch."""
        mean = self.mean.mean(0)
        return mean, (self.variance + (self.mean - mean).square()).mean(0)

    def scaled(self, factors: Tensor) -> MapMoments:
        """Of the maps times `factors` (C,)."""
        return MapMoments(self.size, self.mean * factors, self.variance * factors.square())


@dataclass(frozen=True)
class Observation:
    """One call of a norm on one batch: t is what the old norm gave, y what the new one was given."""

    target: MapMoments
    given: MapMoments
    #: (N, C) of t and y over space; `None` where the two networks saw maps of different shapes.
    covariance: Tensor | None

    def scaled(self, factors: Tensor) -> Observation:
        """With y times `factors` (C,)."""
        joint = None if self.covariance is None else self.covariance * factors
        return Observation(self.target, self.given.scaled(factors), joint)


def map_moments(x: Tensor) -> MapMoments:
    """Mean and biased variance of `x` (N, C, *spatial) per sample and channel."""
    if len(x) == 0:
        nothing = torch.zeros(0, x.shape[1], dtype=torch.float64)
        return MapMoments(math.prod(x.shape[2:]), nothing, nothing)
    size, mean, variance = moments(x.detach(), x.shape[1])
    return MapMoments(size, mean.cpu(), variance.cpu())


def covariance(x: Tensor, x_mean: Tensor, y: Tensor, y_mean: Tensor) -> Tensor:
    """(N, C) covariance over space of two maps of one shape, from their means; float64 on the CPU, as these are."""
    size = math.prod(x.shape[2:])
    if size == 1 or len(x) == 0:
        return torch.zeros_like(x_mean)
    at_once = max(1, VALUES_AT_ONCE // x[0].numel())
    parts = [
        (_centred(a, mean_a) * _centred(b, mean_b)).flatten(2).mean(2)
        for a, mean_a, b, mean_b in zip(
            *(torch.split(tensor, at_once) for tensor in (x, x_mean, y, y_mean)), strict=True
        )
    ]
    return torch.cat(parts).double().cpu()


def shares(parts: list[MapMoments]) -> Tensor:
    """(N, 1): each sample's part of all spatial elements."""
    sizes = torch.cat([torch.full((len(part.mean), 1), float(part.size), dtype=torch.float64) for part in parts])
    return sizes / sizes.sum()


def joined(parts: list[MapMoments]) -> tuple[Tensor, Tensor]:
    """Mean and variance (N, C) of all samples."""
    return torch.cat([part.mean for part in parts]), torch.cat([part.variance for part in parts])


def over_samples(share: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of the union of all samples (Chan, Golub & LeVeque 1979, Eq. 2.1)."""
    whole = (share * mean).sum(0)
    return whole, (share * (variance + (mean - whole).square())).sum(0)


def group_moments(mean: Tensor, variance: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """(N, G, 1): mean and variance of each group, from those of its channels."""
    grouped = mean.reshape(len(mean), num_groups, -1)
    group_mean = grouped.mean(2, keepdim=True)
    spread = variance.reshape(grouped.shape) + (grouped - group_mean).square()
    return group_mean, spread.mean(2, keepdim=True)


def varies(mean: Tensor, variance: Tensor) -> Tensor:
    """(C,) whether a channel is more than one value and its rounding."""
    return variance.sqrt() > DEAD_SHARE * torch.maximum(mean.abs(), variance.mean().sqrt())


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return wide - mean.to(wide).reshape(*mean.shape, *[1] * (x.dim() - 2))
