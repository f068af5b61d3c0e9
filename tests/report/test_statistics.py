"""Paired differences against numbers worked by hand with the t values of a printed table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from batchfree.report import Difference, batch_norm_changes, differences_from_batch_norm, gather_arms, student_interval
from tests.report.sample_study import SampleStudy

# 97.5 % points of Student's distribution with 1 and 2 degrees of freedom, from a printed table.
T_1 = 12.7062
T_2 = 4.30265


def only_difference(out: Path, bn: Mapping[int, float | str], gn: Mapping[int, float | str]) -> Difference:
    study = SampleStudy().add("bn", 8, bn).add("gn", None, gn)
    (difference,) = differences_from_batch_norm(gather_arms(study.read(out)))
    return difference


def test_interval_of_three_values_matches_hand_worked_numbers() -> None:
    # mean -2, deviation 1: -2 -+ t / sqrt(3)
    interval = student_interval([-3.0, -2.0, -1.0])
    assert interval == pytest.approx((-2 - T_2 / math.sqrt(3), -2 + T_2 / math.sqrt(3)), rel=1e-5)


def test_interval_of_two_values_matches_hand_worked_numbers() -> None:
    # mean 1.5, deviation sqrt(0.5): half width t * sqrt(0.5) / sqrt(2) = t / 2
    assert student_interval([1.0, 2.0]) == pytest.approx((1.5 - T_1 / 2, 1.5 + T_1 / 2), rel=1e-5)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_values_have_no_interval(values: list[float]) -> None:
    assert student_interval(values) is None


def test_values_equal_up_to_rounding_have_no_interval() -> None:
    assert student_interval([10.1 - 9.8, 10.2 - 9.9, 10.3 - 10.0]) is None


def test_difference_is_paired_by_seed_whatever_the_order_of_the_cells(tmp_path: Path) -> None:
    # By seed: 4 - 5, 3 - 4.5, 2.5 - 4.5 = -1, -1.5, -2. Paired by position they would be -0.5, -1.5, -2.5.
    found = only_difference(tmp_path, {0: 5.0, 1: 4.5, 2: 4.5}, {2: 2.5, 1: 3.0, 0: 4.0})
    half = T_2 * 0.5 / math.sqrt(3)
    assert found.mean == pytest.approx(-1.5)
    assert found.interval == pytest.approx((-1.5 - half, -1.5 + half), rel=1e-5)


@pytest.mark.parametrize(
    ("gn", "verdict"),
    [
        ({0: 9.0, 1: 9.1, 2: 8.9}, "better"),  # -1.0, -0.9, -1.1: -1 -+ 0.248
        ({0: 11.0, 1: 11.1, 2: 10.9}, "worse"),
        ({0: 9.0, 1: 10.1, 2: 9.8}, "not resolved"),  # -1.0, 0.1, -0.2: mean -0.37 -+ 1.41
        ({0: 9.0, 1: 9.0, 2: 9.0}, "not resolved"),  # -1 thrice: whole images counted alike, not certainty
        ({0: 10.0, 1: 10.0, 2: 10.0}, "not resolved"),
        ({0: 5.0}, "too few seeds"),
        ({}, None),
    ],
)
def test_verdict_follows_the_interval(tmp_path: Path, gn: dict[int, float], verdict: str | None) -> None:
    study = SampleStudy().add("bn", 8, {0: 10.0, 1: 10.0, 2: 10.0}).add("gn", None, gn)
    found = differences_from_batch_norm(gather_arms(study.read(tmp_path)))
    assert [difference.verdict for difference in found] == ([] if verdict is None else [verdict])


def test_a_cell_without_a_usable_error_makes_no_pair(tmp_path: Path) -> None:
    bn: dict[int, float | str] = {0: 10.0, 1: "missing", 2: "diverged: loss is nan", 3: 10.0, 4: 10.0, 5: 10.0}
    gn: dict[int, float | str] = {0: 9.0, 1: 9.0, 2: 9.0, 3: "failed: killed", 4: math.nan, 5: 1e308}
    found = only_difference(tmp_path, bn, gn)
    assert found.seeds == (0,)
    assert found.mean == -1.0


def test_lost_seeds_are_counted_on_the_side_that_lost_them(tmp_path: Path) -> None:
    bn: dict[int, float | str] = {
        0: 10.0,
        1: "diverged: loss is nan",
        2: "failed: killed",
        3: 10.0,
        4: "failed: killed",
    }
    gn: dict[int, float | str] = {0: 9.0, 1: 9.0, 2: 9.0, 3: "failed: killed", 4: "missing"}
    found = only_difference(tmp_path, bn, gn)
    assert found.reference_lost == (1, 2)
    assert found.arm_lost == (3,)


def test_a_batch_free_arm_is_compared_at_every_norm_batch_of_batch_norm(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 2, {0: 13.0, 1: 14.0}).add("bn", 32, {0: 10.0, 1: 10.5})
    study.add("gn+ws", None, {0: 9.0, 1: 9.0}).add("gn", None, {0: 11.0, 1: 11.0})
    found = differences_from_batch_norm(gather_arms(study.read(tmp_path)))
    means = [(d.norm_batch, d.norm, d.mean) for d in found]
    assert means == [(32, "gn", 0.75), (32, "gn+ws", -1.25), (2, "gn", -2.5), (2, "gn+ws", -4.5)]


def test_protocol_paper_compares_at_the_same_norm_batch_only(tmp_path: Path) -> None:
    study = SampleStudy(protocol="paper")
    study.add("bn", 32, {0: 10.0}).add("bn", 2, {0: 20.0}).add("gn", 32, {0: 11.0}).add("gn", 2, {0: 12.0})
    found = differences_from_batch_norm(gather_arms(study.read(tmp_path)))
    assert [(d.norm_batch, d.mean) for d in found] == [(32, 1.0), (2, -8.0)]


def test_without_batch_norm_there_are_no_differences(tmp_path: Path) -> None:
    arms = gather_arms(SampleStudy().add("gn", None, {0: 9.0, 1: 9.5}).read(tmp_path))
    assert differences_from_batch_norm(arms) == []
    assert batch_norm_changes(arms) == []


def test_batch_norm_is_compared_with_its_own_largest_norm_batch(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 1, {0: 20.0, 1: 22.0}).add("bn", 32, {0: 10.0, 1: 10.0}).add("bn", 4, {0: 9.0})
    found = batch_norm_changes(gather_arms(study.read(tmp_path)))
    assert [(d.norm_batch, d.mean, d.verdict) for d in found] == [(4, -1.0, "too few seeds"), (1, 11.0, "not resolved")]
