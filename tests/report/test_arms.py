"""Gathering cells into arms."""

from __future__ import annotations

import math
from pathlib import Path

from batchfree.report import gather_arms
from tests.report.sample_study import SampleStudy


def test_arms_stand_batch_norm_first_and_from_the_largest_norm_batch(tmp_path: Path) -> None:
    study = SampleStudy().add("in", None, {0: 1.0}).add("gn", None, {0: 1.0})
    study.add("bn", 2, {0: 1.0}).add("bn", 32, {0: 1.0}).add("bn", 8, {0: 1.0})
    arms = gather_arms(study.read(tmp_path))
    order = [(arm.norm, arm.norm_batch) for arm in arms.all]
    assert order == [("bn", 32), ("bn", 8), ("bn", 2), ("gn", None), ("in", None)]


def test_a_batch_free_arm_stands_for_every_norm_batch(tmp_path: Path) -> None:
    arms = gather_arms(SampleStudy().add("bn", 8, {0: 1.0}).add("gn", None, {0: 2.0}).read(tmp_path))
    gn = arms.at("gn", 8)
    assert gn is not None
    assert gn.errors == {0: 2.0}
    assert arms.at("ln", 8) is None
    assert arms.at("bn", 4) is None


def test_mean_error_is_over_usable_errors_only(tmp_path: Path) -> None:
    study = SampleStudy().add(
        "gn", None, {0: 9.0, 1: "missing", 2: "diverged: loss is nan", 3: math.nan, 4: -1.0, 5: 101.0, 6: 10.0}
    )
    (arm,) = gather_arms(study.read(tmp_path)).all
    assert arm.errors == {0: 9.0, 6: 10.0}
    assert arm.mean_error == 9.5


def test_an_arm_without_a_finished_cell_has_no_mean(tmp_path: Path) -> None:
    (arm,) = gather_arms(SampleStudy().add("gn", None, {0: "missing"}).read(tmp_path)).all
    assert arm.mean_error is None


def test_an_arm_counts_its_seeds_by_what_became_of_them(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 8, {0: 9.0, 1: "missing", 2: "diverged: x", 3: "failed: y", 4: "missing"})
    (arm,) = gather_arms(study.read(tmp_path)).all
    assert arm.seeds("missing") == (1, 4)
    assert arm.seeds("diverged", "failed") == (2, 3)
    assert arm.seeds("done") == (0,)
