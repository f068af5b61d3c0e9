"""Scales of the filters before a norm: with them the channels of a group count alike, and their means cancel.

A Group Norm takes each sample's own mean away, which Batch Norm in evaluation mode leaves in. The mean of a group is
that of its channels: brought to one deviation, and with signs against each other, they sum to little that differs from
sample to sample. The norm's weight takes scale and sign back, so that only the statistics change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from batchfree.convert._map_moments import Observation, joined, over_samples, shares, varies

__all__ = ["filter_scales", "scale_filters"]

#: A channel that hardly varies on these images may vary on others: it is not enlarged more than this.
MOST = 10.0
#: Of the search for signs; it ends where no sign is worth turning.
SWEEPS = 10

Array = npt.NDArray[np.float64]


def filter_scales(observations: list[Observation], num_groups: int) -> Tensor:
    """(C,) float64, for what the new norm was given: the typical deviation over each channel's own, with a sign."""
    given = [observation.given for observation in observations]
    share = shares(given)
    mean, variance = joined(given)
    whole, total = over_samples(share, mean, variance)
    deviation = total.sqrt()
    typical = total.mean().sqrt()
    sizes = torch.where(deviation * MOST > typical, typical / deviation, MOST)
    sizes = torch.where(varies(whole, total), sizes, 1.0)
    differing = (share.sqrt() * (mean - whole) * sizes).numpy()
    return sizes * torch.from_numpy(np.concatenate([_signs(part) for part in np.split(differing, num_groups, axis=1)]))


def scale_filters(parts: Sequence[Tensor], scales: Tensor) -> None:
    """Multiplies what a convolution holds per filter, in place, by the filters' scales."""
    with torch.no_grad():
        for part in parts:
            part.mul_(scales.to(part).reshape(-1, *[1] * (part.dim() - 1)))


def _signs(columns: Array) -> Array:
    """A sign for each column such that their sum is short: the longest first, then one after the other once more."""
    signs = np.zeros(columns.shape[1])
    total = np.zeros(len(columns))
    order = np.argsort(-np.linalg.norm(columns, axis=0), kind="stable")
    for _ in range(SWEEPS):
        before = signs.copy()
        for index in order:
            column = columns[:, index]
            rest = total - signs[index] * column
            signs[index] = -1.0 if rest @ column > 0 else 1.0
            total = rest + signs[index] * column
        if np.array_equal(signs, before):
            break
    return signs
