"""Intervals, tests and their correction: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["holm", "paired_p_value", "standard_deviation", "student_interval"]

CONFIDENCE = 0.95
#: Percentages are ratios of image counts, so pairs whose differences agree to this are equal up to rounding.
SAME_POINTS = 1e-9


def student_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % Student interval of the mean of `values`: mean -+ t(0.975, n - 1) * sd / sqrt(n).

    Returns:
        (low, high), or `None` with fewer than two values, and where all values are equal: errors are counted in whole
        images, so equal values are a matter of counting, and the formula would turn them into certainty.

    >>> low, high = student_interval([-3.0, -2.0, -1.0])
    >>> round(low, 3), round(high, 3)
    (-4.484, 0.484)
    """
    if not _has_spread(values):
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean - half, mean + half


def paired_p_value(differences: Sequence[float]) -> float | None:
    """The two-sided p value of the paired t test, given the pairs' differences.

    Returns:
        The probability of a mean at least so far from 0 where nothing differs; `None` where `student_interval` is.

    >>> round(paired_p_value([-3.0, -2.0, -1.0]), 4)
    0.0742
    """
    return float(stats.ttest_1samp(differences, 0.0).pvalue) if _has_spread(differences) else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: judged by these at 0.05, the chance that any test of the family errs is 5 %.

    The smallest p is multiplied by the number m of tests, the next by m - 1, and so on; none gets smaller than the one
    before it, and none exceeds 1.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def standard_deviation(values: Sequence[float]) -> float | None:
    """The unbiased-variance deviation between seeds (divided by n - 1); `None` with fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) >= 2 else None


def _has_spread(values: Sequence[float]) -> bool:
    return len(values) >= 2 and max(values) - min(values) > SAME_POINTS
