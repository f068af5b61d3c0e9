"""Gathering cells into arms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from batchfree.records import Cost
from batchfree.report import gather_arms
from tests.report.sample_study import SampleStudy


def labels(study: SampleStudy, out: Path) -> list[str]:
    return [arm.label for arm in gather_arms(*study.read(out)).all]


def test_arms_stand_batch_norm_first_and_from_the_largest_norm_batch(tmp_path: Path) -> None:
    study = SampleStudy().add("in", None, {0: 1.0}).add("gn", None, {0: 1.0}).add("bn+ws", 4, {0: 1.0})
    study.add("bn", 2, {0: 1.0}, recomputed={0: 1.0}).add("bn", 32, {0: 1.0}).add("bn", 8, {0: 1.0})
    assert labels(study, tmp_path) == [
        "BN, norm batch 32",
        "BN, norm batch 8",
        "BN, norm batch 2",
        "BN, statistics recomputed, norm batch 2",
        "BN+WS, norm batch 4",
        "GN",
        "IN",
    ]


def test_a_label_says_the_axes_that_vary_and_no_other(tmp_path: Path) -> None:
    study = SampleStudy(axes=("model", "norm", "groups", "norm_batch", "optimizer", "learning_rate"))
    study.add("bn", 2, {0: 1.0}, model="resnet20", zero_gamma=True)
    study.add("gn+ws", None, {0: 1.0}, model="torchvision:resnet50", groups=16, optimizer="adam", learning_rate=2e-4)
    study.add("gn", None, {0: 1.0}, model="$\\frac$ <b>")
    assert labels(study, tmp_path) == [
        "ResNet-20, BN, norm batch 2, SGD, learning rate 0.1",
        "ResNet-50, GN+WS, 16 groups, Adam, learning rate 0.0002",
        "$\\frac$ <b>, GN, automatic groups, SGD, learning rate 0.1",
    ]


def test_a_statistic_that_no_run_has_makes_no_arm(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 1.0, 1: 2.0}, recomputed={1: 101.0}).add("bn", 2, {0: "missing"})
    assert labels(study, tmp_path) == ["BN, norm batch 32", "BN, norm batch 2"]


def test_recomputed_errors_are_those_of_the_same_runs(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 5.0, 1: 6.0, 2: "diverged: x"}, recomputed={0: 1.5, 1: 2.5})
    own, recomputed = gather_arms(*study.read(tmp_path)).all
    assert recomputed.errors == {0: 1.5, 1: 2.5}
    assert own.errors == {0: 5.0, 1: 6.0}
    assert recomputed.cells == own.cells


def test_an_axis_that_records_do_not_know_is_passed_over(tmp_path: Path) -> None:
    study = SampleStudy(axes=("norm", "colour")).add("gn", None, {0: 1.0})
    assert labels(study, tmp_path) == ["GN"]


def test_mean_error_is_over_usable_errors_only(tmp_path: Path) -> None:
    study = SampleStudy().add(
        "gn", None, {0: 9.0, 1: "missing", 2: "diverged: loss is nan", 3: math.nan, 4: -1.0, 5: 101.0, 6: 10.0}
    )
    (arm,) = gather_arms(*study.read(tmp_path)).all
    assert arm.errors == {0: 9.0, 6: 10.0}
    assert arm.mean_error == 9.5


def test_an_arm_without_a_finished_cell_has_no_mean_and_no_cost(tmp_path: Path) -> None:
    (arm,) = gather_arms(*SampleStudy().add("gn", None, {0: "missing"}).read(tmp_path)).all
    assert (arm.mean_error, arm.milliseconds_per_step, arm.peak_memory_mib) == (None, None, None)


def test_an_arm_counts_its_seeds_by_what_became_of_them(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 8, {0: 9.0, 1: "missing", 2: "diverged: x", 3: "failed: y", 4: "missing"})
    (arm,) = gather_arms(*study.read(tmp_path)).all
    assert arm.seeds("missing") == (1, 4)
    assert arm.seeds("diverged", "failed") == (2, 3)
    assert arm.seeds("done") == (0,)


def test_costs_are_medians_over_the_cells(tmp_path: Path) -> None:
    study = SampleStudy()
    for seed, (seconds, mebibytes) in enumerate(((1.0, 300), (9.0, 100), (2.0, 200))):
        cost = Cost(seconds=50, training_seconds=seconds, steps=100, peak_memory_bytes=mebibytes * 2**20)
        study.add("gn", None, {seed: 1.0}, cost=cost)
    (arm,) = gather_arms(*study.read(tmp_path)).all
    assert arm.milliseconds_per_step == pytest.approx(20.0)
    assert arm.peak_memory_mib == 200


@pytest.mark.parametrize(("protocol", "tied"), [("fixed-sgd", ()), ("paper", ("sgd_batch", "learning_rate"))])
def test_what_changes_with_the_norm_batch_is_known(tmp_path: Path, protocol: str, tied: tuple[str, ...]) -> None:
    study = SampleStudy(protocol=protocol).add("bn", 32, {0: 1.0}).add("bn", 2, {0: 1.0})
    assert gather_arms(*study.read(tmp_path)).tied == tied


def test_a_learning_rate_that_follows_another_axis_is_not_tied_to_the_norm_batch(tmp_path: Path) -> None:
    study = SampleStudy(axes=("norm", "sgd_batch")).add("bn", 4, {0: 1.0}, sgd_batch=32)
    study.add("bn", 4, {0: 1.0}, sgd_batch=64, learning_rate=0.2)
    assert gather_arms(*study.read(tmp_path)).tied == ()
