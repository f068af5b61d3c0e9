"""The closed form: the affine parameters with which a Group Norm gives what the old norm gave, and how well it does.

Everything is computed from moments per (sample, channel), so that one reading of the maps serves every number of
groups, and any number of batches merge into what one big batch would give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from batchfree.groups import divisors
from batchfree.torch import moments

__all__ = [
    "Fit",
    "MapMoments",
    "Observation",
    "candidate_eps",
    "candidate_groups",
    "covariance",
    "fit_norm",
    "map_moments",
]

#: A deviation below this share of its map's size is float32's rounding: the channel is constant.
DEAD_SHARE = 1e-6
#: `groups="auto"` keeps at least this many channels, and values, per group; a narrower norm is one group.
MIN_CHANNELS_PER_GROUP = 8
MIN_VALUES_PER_GROUP = 8
#: `eps="auto"` chooses among these shares of the groups' mean variance. The old norm scales all images alike; an
#: epsilon as large as the variance keeps half of what their own deviations would take away. Larger ones fit each
#: norm better, and kept less of four of the six networks that they were tried on.
EPS_SHARES = (0.1, 0.3, 1.0)
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


@dataclass(frozen=True)
class Observation:
    """One call of a norm on one batch: t is what the old norm gave, y what the new one was given."""

    target: MapMoments
    given: MapMoments
    #: (N, C) of t and y over space; `None` where the two networks saw maps of different shapes.
    covariance: Tensor | None


@dataclass(frozen=True)
class Fit:
    """The best affine parameters for one number of groups and one epsilon."""

    num_groups: int
    eps: float
    weight: Tensor  # (C,) float64
    bias: Tensor  # (C,) float64
    #: Root of the mean squared residual over the variance of the target, over all channels; `None` where unknown.
    error: float | None
    dead_channels: int


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


def fit_norm(
    observations: list[Observation],
    num_groups: int,
    eps: float,
    sign: Tensor,
    *,
    has_weight: bool = True,
    has_bias: bool = True,
) -> Fit:
    """weight = sign * std(t) / std(z) and bias = mean(t) - weight * mean(z), z being y normalised in its groups.

    Moments are matched instead of minimising the squared error, whose weights shrink with every norm's misfit until
    the later norms have little left to work with. What the norm has not is 1 or 0, and the error is of that.
    """
    t_share = _shares([observation.target for observation in observations])
    y_share = _shares([observation.given for observation in observations])
    t_mean, t_variance = _joined([observation.target for observation in observations])
    y_mean, y_variance = _joined([observation.given for observation in observations])
    z_mean, rstd = _normalized(y_mean, y_variance, num_groups, eps)
    z_variance = y_variance * rstd.square()

    target_mean, target_variance = _over_samples(t_share, t_mean, t_variance)
    mean, variance = _over_samples(y_share, z_mean, z_variance)
    live = _varies(target_mean, target_variance) & _varies(mean, variance)
    weight = torch.where(live, sign * (target_variance / variance).sqrt(), 0.0) if has_weight else torch.ones_like(sign)
    offset = target_mean - weight * mean
    missed = 0.0 if has_bias else offset.square()

    covariances = [observation.covariance for observation in observations]
    error = None
    if all(part is not None for part in covariances):
        within = torch.cat([part for part in covariances if part is not None]) * rstd
        between = (t_mean - target_mean) * (z_mean - mean)
        joint = (t_share * (within + between)).sum(0)
        residual = target_variance - 2 * weight * joint + weight.square() * variance + missed
        error = _relative_error(residual, target_variance)
    bias = offset if has_bias else torch.zeros_like(offset)
    return Fit(num_groups, eps, weight, bias, error, int((~live).sum()))


def candidate_groups(channels: int, smallest_map: int) -> list[int]:
    """The numbers of groups that `groups="auto"` chooses from, ascending."""
    values = min(MIN_VALUES_PER_GROUP, channels * smallest_map)
    return [
        groups
        for groups in divisors(channels)
        if channels // groups >= min(MIN_CHANNELS_PER_GROUP, channels) and channels // groups * smallest_map >= values
    ]


def candidate_eps(observations: list[Observation], num_groups: int, eps: float) -> list[float]:
    """The values that `eps="auto"` chooses from, with the norm's own `eps` first."""
    mean, variance = _joined([observation.given for observation in observations])
    share = _shares([observation.given for observation in observations])
    typical = float((share * _group_moments(mean, variance, num_groups)[1].flatten(1)).sum(0).mean())
    return [eps, *(part * typical for part in EPS_SHARES if part * typical > eps)]


def _centred(x: Tensor, mean: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return wide - mean.to(wide).reshape(*mean.shape, *[1] * (x.dim() - 2))


def _shares(parts: list[MapMoments]) -> Tensor:
    """(N, 1): each sample's part of all spatial elements."""
    sizes = torch.cat([torch.full((len(part.mean), 1), float(part.size), dtype=torch.float64) for part in parts])
    return sizes / sizes.sum()


def _joined(parts: list[MapMoments]) -> tuple[Tensor, Tensor]:
    return torch.cat([part.mean for part in parts]), torch.cat([part.variance for part in parts])


def _over_samples(share: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of the union of all samples (Chan, Golub & LeVeque 1979, Eq. 2.1)."""
    whole = (share * mean).sum(0)
    return whole, (share * (variance + (mean - whole).square())).sum(0)


def _normalized(mean: Tensor, variance: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """(N, C): the mean of each channel after normalisation, and the factor that normalises it."""
    grouped = mean.reshape(len(mean), num_groups, -1)
    group_mean, group_variance = _group_moments(mean, variance, num_groups)
    rstd = (group_variance + eps).rsqrt().expand_as(grouped)
    return ((grouped - group_mean) * rstd).flatten(1), rstd.flatten(1)


def _group_moments(mean: Tensor, variance: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """(N, G, 1): mean and variance of each group, from those of its channels."""
    grouped = mean.reshape(len(mean), num_groups, -1)
    group_mean = grouped.mean(2, keepdim=True)
    spread = variance.reshape(grouped.shape) + (grouped - group_mean).square()
    return group_mean, spread.mean(2, keepdim=True)


def _varies(mean: Tensor, variance: Tensor) -> Tensor:
    """(C,) whether a channel is more than one value and its rounding."""
    return variance.sqrt() > DEAD_SHARE * torch.maximum(mean.abs(), variance.mean().sqrt())


def _relative_error(residual: Tensor, variance: Tensor) -> float:
    total = float(variance.sum())
    return math.sqrt(max(float(residual.sum()), 0.0) / total) if total > 0 else 0.0
