"""Which arms are compared with which, and the verdicts, against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from batchfree.records import Comparison
from batchfree.report import Difference, compare, gather_arms
from tests.report.sample_study import AGAINST_ITSELF, FROM_BATCH_NORM, SampleStudy

T_2 = 4.30265  # 97.5 % point of Student's distribution with 2 degrees of freedom, from a printed table

Errors = Mapping[int, float | str]
ONE: Errors = {0: 1.0}


def only_difference(out: Path, bn: Errors, gn: Errors) -> Difference:
    (difference,) = compared(SampleStudy().add("bn", 8, bn).add("gn", None, gn), out, FROM_BATCH_NORM)
    return difference


def compared(study: SampleStudy, out: Path, comparison: Comparison) -> tuple[Difference, ...]:
    return compare(gather_arms(*study.read(out)), comparison)


def pairs(found: tuple[Difference, ...]) -> list[tuple[str, str]]:
    return [(difference.reference.label, difference.arm.label) for difference in found]


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
    ],
)
def test_a_lone_verdict_follows_the_interval(tmp_path: Path, gn: Errors, verdict: str) -> None:
    assert only_difference(tmp_path, {0: 10.0, 1: 10.0, 2: 10.0}, gn).verdict == verdict


def test_verdicts_are_corrected_over_the_family_and_intervals_are_not(tmp_path: Path) -> None:
    # GN: -1.0, -0.9, -1.1, t = 17.3, p = 0.0033. LN: -1.0, -0.6, -1.4, t = 4.33, p = 0.0494: resolved alone, not as
    # the second of three (0.0988). IN: -1.0, 1.1, 0.2 is not resolved at all.
    study = SampleStudy().add("bn", 8, {0: 10.0, 1: 10.0, 2: 10.0})
    study.add("gn", None, {0: 9.0, 1: 9.1, 2: 8.9}).add("ln", None, {0: 9.0, 1: 9.4, 2: 8.6})
    gn, ln, instance = compared(study.add("in", None, {0: 9.0, 1: 11.1, 2: 10.2}), tmp_path, FROM_BATCH_NORM)
    assert (gn.verdict, ln.verdict, instance.verdict) == ("better", "not resolved", "not resolved")
    assert ln.interval is not None
    assert ln.interval[1] < 0
    assert gn.holm_p_value == pytest.approx(3 * 0.003317, rel=1e-3)
    assert ln.holm_p_value == pytest.approx(2 * 0.04942, rel=1e-3)
    assert (ln.p_value or 0) < 0.05


def test_rows_without_a_test_do_not_weigh_on_the_others(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 8, {0: 10.0, 1: 10.0, 2: 10.0}).add("gn", None, {0: 9.0, 1: 9.4, 2: 8.6})
    study.add("ln", None, {0: 9.0}).add("in", None, {0: 9.0, 1: 9.0, 2: 9.0})
    gn, ln, equal = compared(study, tmp_path, FROM_BATCH_NORM)
    assert (gn.verdict, gn.holm_p_value) == ("better", gn.p_value)
    assert (ln.verdict, ln.holm_p_value) == ("too few seeds", None)
    assert (equal.verdict, equal.holm_p_value) == ("not resolved", None)


def test_a_cell_without_a_usable_error_makes_no_pair(tmp_path: Path) -> None:
    bn: Errors = {0: 10.0, 1: "missing", 2: "diverged: loss is nan", 3: 10.0, 4: 10.0, 5: 10.0}
    gn: Errors = {0: 9.0, 1: 9.0, 2: 9.0, 3: "failed: killed", 4: math.nan, 5: 1e308}
    found = only_difference(tmp_path, bn, gn)
    assert found.seeds == (0,)
    assert found.mean == -1.0


def test_lost_seeds_are_counted_on_the_side_that_lost_them(tmp_path: Path) -> None:
    bn: Errors = {0: 10.0, 1: "diverged: nan", 2: "out of memory: x", 3: 10.0, 4: "skipped: x", 5: 10.0}
    gn: Errors = {0: 9.0, 1: 9.0, 2: 9.0, 3: "failed: killed", 4: "missing", 5: "timed out: x"}
    found = only_difference(tmp_path, bn, gn)
    assert found.reference_lost == (1, 2)
    assert found.arm_lost == (3, 5)


def test_a_batch_free_arm_is_compared_at_every_norm_batch_of_batch_norm(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 2, {0: 13.0, 1: 14.0}).add("bn", 32, {0: 10.0, 1: 10.5})
    study.add("gn+ws", None, {0: 9.0, 1: 9.0}).add("gn", None, {0: 11.0, 1: 11.0})
    found = compared(study, tmp_path, FROM_BATCH_NORM)
    means = [(d.reference.norm_batch, d.arm.norm, d.mean) for d in found]
    assert means == [(32, "gn", 0.75), (32, "gn+ws", -1.25), (2, "gn", -2.5), (2, "gn+ws", -4.5)]


def test_arms_that_follow_the_norm_batch_are_compared_at_the_same_one_only(tmp_path: Path) -> None:
    study = SampleStudy(protocol="paper")
    study.add("bn", 32, {0: 10.0}).add("bn", 2, {0: 20.0}).add("gn", 32, {0: 11.0}).add("gn", 2, {0: 12.0})
    found = compared(study, tmp_path, FROM_BATCH_NORM)
    assert [(d.arm.norm_batch, d.mean) for d in found] == [(32, 1.0), (2, -8.0)]


def test_batch_norm_is_compared_with_its_own_largest_norm_batch(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 1, {0: 20.0, 1: 22.0}).add("bn", 32, {0: 10.0, 1: 10.0}).add("bn", 4, {0: 9.0})
    found = compared(study.add("gn", None, ONE), tmp_path, AGAINST_ITSELF)
    assert [(d.arm.norm_batch, d.mean, d.verdict) for d in found] == [
        (4, -1.0, "too few seeds"),
        (1, 11.0, "not resolved"),
    ]


@pytest.mark.parametrize(
    ("norm_batch", "taking_part"),
    [
        (2, ["BN, norm batch 2"]),
        ("none", ["GN", "LN"]),
        ((2, "none"), ["BN, norm batch 2", "GN", "LN"]),
        ((1, 2), ["BN, norm batch 2", "BN, norm batch 1"]),
    ],
)
def test_only_arms_with_one_of_the_values_take_part_and_none_is_a_value(
    tmp_path: Path, norm_batch: int | str | tuple[int | str, ...], taking_part: list[str]
) -> None:
    given = Comparison(title="t", reference={"norm": "bn", "norm_batch": 32}, only={"norm_batch": norm_batch})
    sample = SampleStudy(compare=(given,)).add("bn", 32, ONE).add("bn", 2, ONE).add("bn", 1, ONE)
    study, cells = sample.add("gn", None, ONE).add("ln", None, ONE).read(tmp_path)
    found = compare(gather_arms(study, cells), study.report.compare[0])  # as it comes back from study.json
    assert [difference.arm.label for difference in found] == taking_part


@pytest.mark.parametrize("comparison", [FROM_BATCH_NORM, AGAINST_ITSELF, Comparison(title="t", reference={"x": 1})])
def test_without_a_reference_there_are_no_differences(tmp_path: Path, comparison: Comparison) -> None:
    assert compared(SampleStudy().add("gn", None, ONE).add("ln", None, ONE), tmp_path, comparison) == ()


def test_networks_are_not_mixed(tmp_path: Path) -> None:
    study = SampleStudy(axes=("model", "norm"))
    for model in ("resnet20", "resnet56"):
        study.add("bn", 32, ONE, model=model).add("gn", None, ONE, model=model)
    assert pairs(compared(study, tmp_path, FROM_BATCH_NORM)) == [
        ("ResNet-20, BN", "ResNet-20, GN"),
        ("ResNet-56, BN", "ResNet-56, GN"),
    ]


def test_group_counts_and_channels_per_group_are_families_of_their_own(tmp_path: Path) -> None:
    study = SampleStudy(axes=("groups", "channels_per_group"))
    for number in (8, 1):
        study.add("gn", None, ONE, groups=number)
    for number in (4, 1):
        study.add("gn", None, ONE, channels_per_group=number)
    arms = gather_arms(*study.read(tmp_path))
    by_count = Comparison(title="t", reference={"groups": 1}, only={"channels_per_group": "none"})
    by_size = Comparison(title="t", reference={"channels_per_group": 1}, only={"groups": "auto"})
    assert pairs(compare(arms, by_count)) == [("GN, 1 group", "GN, 8 groups")]
    assert pairs(compare(arms, by_size)) == [("GN, 1 channel per group", "GN, 4 channels per group")]


def test_batch_norm_is_the_reference_of_every_split_of_the_channels(tmp_path: Path) -> None:
    study = SampleStudy(axes=("norm", "groups")).add("bn", 32, ONE)
    study.add("gn", None, ONE, groups=8).add("gn", None, ONE, groups=1)
    assert pairs(compared(study, tmp_path, FROM_BATCH_NORM)) == [("BN", "GN, 8 groups"), ("BN", "GN, 1 group")]


def test_the_same_recipe_is_compared_and_a_gamma_or_a_norm_can_be_the_question(tmp_path: Path) -> None:
    study = SampleStudy(axes=("norm", "zero_gamma"))
    for norm in ("gn", "gn+ws"):
        for zero_gamma in (True, False):
            study.add("gn" if norm == "gn" else "gn+ws", None, ONE, zero_gamma=zero_gamma)
    arms = gather_arms(*study.read(tmp_path))
    gamma = Comparison(title="t", reference={"zero_gamma": False})
    assert pairs(compare(arms, gamma)) == [
        ("GN, last gamma 1", "GN, last gamma 0"),
        ("GN+WS, last gamma 1", "GN+WS, last gamma 0"),
    ]
    standardized = Comparison(title="t", reference={"norm": "gn"}, only={"norm": "gn+ws"})
    assert pairs(compare(arms, standardized)) == [
        ("GN, last gamma 0", "GN+WS, last gamma 0"),
        ("GN, last gamma 1", "GN+WS, last gamma 1"),
    ]


def test_recomputed_statistics_are_compared_with_the_same_runs_and_with_their_own_kind(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0}, recomputed={0: 9.0}).add("bn", 2, {0: 20.0}, recomputed={0: 12.0})
    arms = gather_arms(*study.read(tmp_path))
    found = compare(arms, FROM_BATCH_NORM)
    assert [(d.reference.label, d.arm_label, d.mean) for d in found] == [
        ("BN, norm batch 32", "BN, statistics recomputed", -1.0),
        ("BN, norm batch 2", "BN, statistics recomputed", -8.0),
    ]
    assert [(d.arm.label, d.mean) for d in compare(arms, AGAINST_ITSELF)] == [
        ("BN, norm batch 2", 10.0),
        ("BN, statistics recomputed, norm batch 2", 3.0),
    ]


def test_a_learning_rate_with_a_rounding_error_is_found(tmp_path: Path) -> None:
    study = SampleStudy(axes=("learning_rate",)).add("gn", None, ONE, learning_rate=0.1 + 0.2)
    study.add("gn", None, ONE, learning_rate=0.1)
    comparison = Comparison(title="t", reference={"learning_rate": 0.3})
    assert pairs(compared(study, tmp_path, comparison)) == [("GN, learning rate 0.3", "GN, learning rate 0.1")]
