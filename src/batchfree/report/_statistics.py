"""Seed-paired differences between two arms, with Student intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy import stats

from batchfree.records import BATCH_FREE_NORMS, Norm
from batchfree.report._arms import LOST, Arm, Arms

__all__ = [
    "Difference",
    "Verdict",
    "batch_norm_changes",
    "differences_from_batch_norm",
    "paired_difference",
    "standard_deviation",
    "student_interval",
]

#: "better" is a lower error. "too few seeds": fewer than two pairs, so no interval exists.
Verdict: TypeAlias = Literal["better", "worse", "not resolved", "too few seeds"]

CONFIDENCE = 0.95
#: Percentages are ratios of image counts, so pairs whose differences agree to this are equal up to rounding.
SAME_POINTS = 1e-9


@dataclass(frozen=True)
class Difference:
    """Error of an arm minus error of its reference, in points of percent, over the seeds that both finished."""

    norm: Norm
    norm_batch: int  # the norm batch that the comparison is about
    seeds: tuple[int, ...]
    mean: float | None  # None without a pair
    interval: tuple[float, float] | None  # None with fewer than two pairs, or where all pairs are equal
    verdict: Verdict
    reference_lost: tuple[int, ...]  # seeds that the arm finished and in which the reference diverged or failed
    arm_lost: tuple[int, ...]  # the other way round


def student_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % Student interval of the mean of `values`: mean -+ t(0.975, n - 1) * sd / sqrt(n).

    Returns:
        (low, high), or `None` with fewer than two values, and where all values are equal: errors are counted in whole
        images, so equal values are a matter of counting, and the formula would turn them into certainty.

    >>> low, high = student_interval([-3.0, -2.0, -1.0])
    >>> round(low, 3), round(high, 3)
    (-4.484, 0.484)
    """
    if len(values) < 2 or max(values) - min(values) <= SAME_POINTS:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean - half, mean + half


def standard_deviation(values: Sequence[float]) -> float | None:
    """The unbiased-variance deviation between seeds (divided by n - 1); `None` with fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) >= 2 else None


def paired_difference(arm: Arm, reference: Arm, norm_batch: int) -> Difference:
    """`arm` minus `reference`, seed by seed.

    Args:
        arm: the arm in question; one that stands for every norm batch is paired with the reference of any.
        reference: Batch Norm at one norm batch.
        norm_batch: the norm batch that the comparison is about.
    """
    ours, theirs = arm.errors, reference.errors
    seeds = tuple(seed for seed in ours if seed in theirs)
    values = [ours[seed] - theirs[seed] for seed in seeds]
    interval = student_interval(values)
    return Difference(
        norm=arm.norm,
        norm_batch=norm_batch,
        seeds=seeds,
        mean=sum(values) / len(values) if values else None,
        interval=interval,
        verdict=_verdict(len(values), interval),
        reference_lost=tuple(seed for seed in reference.seeds(*LOST) if seed in ours),
        arm_lost=tuple(seed for seed in arm.seeds(*LOST) if seed in theirs),
    )


def differences_from_batch_norm(arms: Arms) -> list[Difference]:
    """Every other norm minus Batch Norm at the same norm batch, largest norm batch first; empty without Batch Norm."""
    found = []
    for norm_batch, reference in arms.batch_norm.items():
        for norm in BATCH_FREE_NORMS:
            arm = arms.at(norm, norm_batch)
            if arm is not None:
                found.append(paired_difference(arm, reference, norm_batch))
    return found


def batch_norm_changes(arms: Arms) -> list[Difference]:
    """Batch Norm at each smaller norm batch minus Batch Norm at the largest; empty with fewer than two."""
    own = list(arms.batch_norm.items())
    return [paired_difference(arm, own[0][1], norm_batch) for norm_batch, arm in own[1:]]


def _verdict(pairs: int, interval: tuple[float, float] | None) -> Verdict:
    if pairs < 2:
        return "too few seeds"
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "not resolved"
    return "better" if interval[1] < 0 else "worse"
