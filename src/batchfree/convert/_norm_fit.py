"""The closed form: the affine parameters with which a Group Norm gives what the old norm gave, and how well it does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from batchfree.convert._map_moments import Observation, group_moments, joined, over_samples, shares, varies
from batchfree.groups import divisors

__all__ = ["Fit", "candidate_eps", "candidate_groups", "fit_norm"]

#: A smaller correlation does not tell a sign: the maps may be of other places, as those of a detector's boxes.
RELATED = 0.5
#: `groups="auto"` keeps at least this many channels, and values, per group; a narrower norm is one group.
MIN_CHANNELS_PER_GROUP = 8
MIN_VALUES_PER_GROUP = 8
#: `eps="auto"` chooses among these shares of the groups' mean variance. The old norm scales all images alike; an
#: epsilon as large as the variance keeps half of what their own deviations would take away. Larger ones fit each
#: norm better, and kept less of four of the six networks that they were tried on: the less the deviation counts, the
#: more does the mean that is taken away. Where filters are scaled it is small, and they keep more.
EPS_SHARES = (0.1, 0.3, 1.0)
EPS_SHARES_OF_SCALED = (*EPS_SHARES, 3.0, 10.0)


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


def fit_norm(
    observations: list[Observation],
    num_groups: int,
    eps: float,
    sign: Tensor,
    *,
    has_weight: bool = True,
    has_bias: bool = True,
) -> Fit:
    """weight = +-std(t) / std(z) and bias = mean(t) - weight * mean(z), z being y normalised in its groups.

    The sign is that of the correlation of t and z, or `sign` (C,) where that is small or the maps cannot be compared.

    Moments are matched instead of minimising the squared error, whose weights shrink with every norm's misfit until
    the later norms have little left to work with. What the norm has not is 1 or 0, and the error is of that.
    """
    t_share = shares([observation.target for observation in observations])
    y_share = shares([observation.given for observation in observations])
    t_mean, t_variance = joined([observation.target for observation in observations])
    y_mean, y_variance = joined([observation.given for observation in observations])
    z_mean, rstd = _normalized(y_mean, y_variance, num_groups, eps)
    z_variance = y_variance * rstd.square()

    target_mean, target_variance = over_samples(t_share, t_mean, t_variance)
    mean, variance = over_samples(y_share, z_mean, z_variance)
    joint = None
    covariances = [observation.covariance for observation in observations]
    if all(part is not None for part in covariances):
        within = torch.cat([part for part in covariances if part is not None]) * rstd
        between = (t_mean - target_mean) * (z_mean - mean)
        joint = (t_share * (within + between)).sum(0)
        related = joint.abs() > RELATED * (target_variance * variance).sqrt()
        sign = torch.where(related, joint.sign(), sign)

    live = varies(target_mean, target_variance) & varies(mean, variance)
    weight = torch.where(live, sign * (target_variance / variance).sqrt(), 0.0) if has_weight else torch.ones_like(sign)
    offset = target_mean - weight * mean
    missed = 0.0 if has_bias else offset.square()
    error = None
    if joint is not None:
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


def candidate_eps(observations: list[Observation], num_groups: int, eps: float, *, is_scaled: bool) -> list[float]:
    """The values that `eps="auto"` chooses from, with the norm's own `eps` first."""
    parts = EPS_SHARES_OF_SCALED if is_scaled else EPS_SHARES
    mean, variance = joined([observation.given for observation in observations])
    share = shares([observation.given for observation in observations])
    typical = float((share * group_moments(mean, variance, num_groups)[1].flatten(1)).sum(0).mean())
    return [eps, *(part * typical for part in parts if part * typical > eps)]


def _normalized(mean: Tensor, variance: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """(N, C): the mean of each channel after normalisation, and the factor that normalises it."""
    grouped = mean.reshape(len(mean), num_groups, -1)
    group_mean, group_variance = group_moments(mean, variance, num_groups)
    rstd = (group_variance + eps).rsqrt().expand_as(grouped)
    return ((grouped - group_mean) * rstd).flatten(1), rstd.flatten(1)


def _relative_error(residual: Tensor, variance: Tensor) -> float:
    total = float(variance.sum())
    return math.sqrt(max(float(residual.sum()), 0.0) / total) if total > 0 else 0.0
