"""Intervals, tests and correction against numbers worked by hand, printed tables and SciPy."""

from __future__ import annotations

import itertools
import math

import pytest
from scipy import stats

from batchfree.report import holm, paired_p_value, student_interval

# 97.5 % points of Student's distribution with 1 and 2 degrees of freedom, from a printed table.
T_1 = 12.7062
T_2 = 4.30265


def test_interval_of_three_values_matches_hand_worked_numbers() -> None:
    # mean -2, deviation 1: -2 -+ t / sqrt(3)
    interval = student_interval([-3.0, -2.0, -1.0])
    assert interval == pytest.approx((-2 - T_2 / math.sqrt(3), -2 + T_2 / math.sqrt(3)), rel=1e-5)


def test_interval_of_two_values_matches_hand_worked_numbers() -> None:
    # mean 1.5, deviation sqrt(0.5): half width t * sqrt(0.5) / sqrt(2) = t / 2
    assert student_interval([1.0, 2.0]) == pytest.approx((1.5 - T_1 / 2, 1.5 + T_1 / 2), rel=1e-5)


@pytest.mark.parametrize("values", [[], [1.0], [10.1 - 9.8, 10.2 - 9.9, 10.3 - 10.0]])
def test_fewer_than_two_values_or_equal_ones_have_neither_interval_nor_test(values: list[float]) -> None:
    assert student_interval(values) is None
    assert paired_p_value(values) is None


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((9.1, 8.7, 9.4), (10.2, 9.9, 9.8)), ((1.0, 5.0), (2.0, 1.0)), ((3.0, 3.1, 2.9, 3.3), (3.0,) * 4)],
)
def test_p_value_is_scipys_for_paired_samples(ours: tuple[float, ...], theirs: tuple[float, ...]) -> None:
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert paired_p_value(differences) == pytest.approx(float(stats.ttest_rel(ours, theirs).pvalue), rel=1e-9)


def test_p_value_with_one_degree_of_freedom_matches_the_cauchy_distribution() -> None:
    # Two values 1 and 3: mean 2, standard error 1, t = 2; p = 1 - 2 * atan(2) / pi.
    assert paired_p_value([1.0, 3.0]) == pytest.approx(1 - 2 * math.atan(2) / math.pi, rel=1e-9)


def test_holm_matches_a_hand_worked_family() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last is not below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_leaves_a_single_test_alone() -> None:
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_rejects_what_its_step_down_procedure_rejects() -> None:
    # Holm's own wording: reject while the k-th smallest p is at most 0.05 / (m - k + 1), and stop at the first above.
    grid = (0.001, 0.012, 0.0167, 0.02, 0.026, 0.049, 0.3)
    for family in itertools.product(grid, repeat=3):
        rejected = 0
        for rank, p in enumerate(sorted(family)):
            if p > 0.05 / (len(family) - rank):
                break
            rejected += 1
        assert sum(p <= 0.05 for p in holm(family)) == rejected
