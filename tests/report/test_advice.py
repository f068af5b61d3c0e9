"""What the advice says in every kind of study. The errors are chosen so that the verdicts can be seen at a glance."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchfree.report import Advice, advise, gather_arms
from tests.report.sample_study import SampleStudy

# Seed by seed subtraction gives -+0.1 around a whole number: resolved. NEAR minus TEN is -0.3, 0.3, 0.1: not resolved.
TEN: dict[int, float | str] = {0: 10.0, 1: 10.2, 2: 10.1}
NEAR: dict[int, float | str] = {0: 9.7, 1: 10.5, 2: 10.2}
THIRTEEN: dict[int, float | str] = {0: 13.0, 1: 13.3, 2: 13.0}
EIGHT: dict[int, float | str] = {0: 8.0, 1: 8.3, 2: 8.0}
SEVEN: dict[int, float | str] = {0: 7.0, 1: 7.3, 2: 7.0}
ALL_DIVERGED: dict[int, float | str] = dict.fromkeys(range(3), "diverged: loss is nan at step 3")


def advice(study: SampleStudy, out: Path) -> Advice:
    return advise(gather_arms(*study.read(out)))


def choices(given: Advice) -> list[tuple[int, str | None]]:
    return [(choice.norm_batch, choice.norm) for choice in given.choices]


def test_the_arm_with_the_lowest_mean_of_those_resolved_better_is_chosen(tmp_path: Path) -> None:
    # IN has the lowest mean of all, but from one seed: it is not resolved.
    study = SampleStudy().add("bn", 8, TEN).add("gn", None, EIGHT).add("ln", None, SEVEN).add("in", None, {0: 1.0})
    given = advice(study, tmp_path)
    assert choices(given) == [(8, "ln")]
    assert given.choices[0].difference == pytest.approx(-3.0)


def test_batch_norm_is_kept_where_no_arm_is_resolved_better(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, TEN).add("bn", 2, THIRTEEN).add("gn", None, NEAR).add("ln", None, THIRTEEN)
    given = advice(study, tmp_path)
    assert choices(given) == [(32, "bn"), (2, "gn")]
    assert given.sentences == (
        "Batch Norm loses accuracy as the norm batch shrinks: compared with norm batch 32, its error is 3.00 points "
        "higher at 2 (95\u00a0% interval 2.75 to 3.25).",
        "Use Group Norm (GN) at norm batch 2, where its error is resolved lower than Batch Norm's, by 2.97 points; "
        "at 32 nothing argues against Batch Norm: no arm is resolved better.",
    )


def test_nothing_resolved_is_said_so(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, TEN).add("bn", 8, NEAR).add("gn", None, TEN)
    first, second = advice(study, tmp_path).sentences
    assert "is resolved (mean change +0.03 points at 8)" in first
    assert first.startswith("No change of Batch Norm's error from norm batch 32 to a smaller one")
    assert second == (
        "No arm is resolved better than Batch Norm at norm batch 32 and 8: nothing here argues against it there."
    )


def test_no_trend_is_claimed_where_the_smallest_norm_batch_is_not_resolved(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, TEN).add("bn", 8, THIRTEEN).add("bn", 2, NEAR).add("gn", None, TEN)
    first = advice(study, tmp_path).sentences[0]
    assert "loses" not in first
    assert "3.00 points higher at 8 (95\u00a0% interval 2.75 to 3.25) and not resolved from it at 2." in first


def test_a_gain_is_told_as_lower_error(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, TEN).add("bn", 8, EIGHT).add("bn", 2, THIRTEEN).add("gn", None, TEN)
    first = advice(study, tmp_path).sentences[0]
    assert "3.00 points higher at 2" in first
    assert "2.00 points lower at 8 (1.75 to 2.25)" in first


def test_one_seed_gives_no_advice_and_no_interval(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0}).add("bn", 1, {0: 30.0}).add("gn", None, {0: 11.0})
    given = advice(study, tmp_path)
    assert choices(given) == [(32, None), (1, None)]
    assert "10.0\u00a0% at 32 and 30.0\u00a0% at 1, but with fewer than two finished seeds" in given.sentences[0]
    assert given.sentences[1].startswith("There are too few finished runs to compare any arm with Batch Norm")
    assert "interval" not in " ".join(given.sentences)


def test_where_batch_norm_always_diverged_an_arm_that_finished_every_seed_is_chosen(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, TEN).add("bn", 1, ALL_DIVERGED)
    # LN is lower, but one of its seeds is gone.
    study.add("gn", None, NEAR).add("ln", None, {0: 5.0, 1: 9.0, 2: "failed: killed"})
    given = advice(study, tmp_path)
    assert choices(given) == [(32, "bn"), (1, "gn")]
    assert given.sentences[1].startswith("Use Group Norm (GN) at norm batch 1, where every Batch Norm run diverged; ")
    assert "3 of its 3 runs at norm batch 1 diverged" in given.sentences[0]


def test_an_arm_that_lost_its_hard_seed_does_not_win_by_its_absence(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 10.2, 2: 20.0})
    study.add("gn", None, {0: 8.0, 1: 8.3, 2: 17.9}).add("in", None, {0: 7.0, 1: 7.1, 2: "diverged: loss is nan"})
    given = advice(study, tmp_path)
    assert choices(given) == [(32, "gn")]
    assert given.choices[0].passed_over == ("in",)


def test_a_table_that_shows_a_better_arm_with_lost_runs_is_not_contradicted(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, TEN).add("gn", None, {0: 8.0, 1: 8.3, 2: "diverged: loss is nan"})
    given = advice(study, tmp_path)
    assert choices(given) == [(32, "bn")]
    assert given.sentences[1] == (
        "No arm that lost no run is resolved better than Batch Norm at norm batch 32: "
        "nothing here argues against it there."
    )


def test_where_every_batch_norm_run_crashed_there_is_no_advice(tmp_path: Path) -> None:
    crashed: dict[int, float | str] = dict.fromkeys(range(3), "failed: killed by signal 9")
    study = SampleStudy().add("bn", 32, TEN).add("bn", 1, crashed).add("gn", None, NEAR)
    given = advice(study, tmp_path)
    assert choices(given) == [(32, "bn"), (1, None)]
    assert "at 1 too few runs finished to say" in given.sentences[1]


def test_batch_norm_that_diverged_in_some_seeds_is_not_kept_and_its_losses_are_counted(tmp_path: Path) -> None:
    some: dict[int, float | str] = {0: 10.0, 1: 10.2, 2: "diverged: loss is nan at step 3"}
    study = SampleStudy().add("bn", 32, TEN).add("bn", 1, some).add("gn", None, NEAR)
    given = advice(study, tmp_path)
    assert choices(given) == [(32, "bn"), (1, None)]
    assert "1 of its 3 runs at norm batch 1 diverged" in given.sentences[0]


def test_untested_norm_batches_are_named(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, TEN).add("bn", 8, THIRTEEN).add("bn", 1, {0: 30.0, 1: "missing", 2: "missing"})
    first = advice(study.add("gn", None, TEN), tmp_path).sentences[0]
    assert "too few seeds finished to compare at 1" in first


def test_without_batch_norm_the_advice_compares_nothing(tmp_path: Path) -> None:
    study = SampleStudy().add("gn", None, TEN).add("ln", None, EIGHT)
    given = advice(study, tmp_path)
    assert given.choices == ()
    assert given.sentences == (
        "This study has no Batch Norm runs, so it cannot say what a small norm batch costs.",
        "The lowest mean error is that of Layer Norm (LN) (8.10\u00a0%, 3 seeds), but without Batch Norm there is "
        "nothing to test it against.",
    )


def test_batch_norm_alone_has_nothing_to_be_replaced_by(tmp_path: Path) -> None:
    given = advice(SampleStudy().add("bn", 32, TEN), tmp_path)
    assert given.sentences == (
        "Batch Norm ran at norm batch 32 only, so this study cannot say what a smaller one costs.",
        "No batch-free norm is in this study, so there is nothing to use instead.",
    )


def test_a_study_without_a_finished_run_advises_nothing(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: "missing"}).add("bn", 8, {0: "missing"}).add("gn", None, {0: "missing"})
    first, second = advice(study, tmp_path).sentences
    assert first.startswith("No Batch Norm run has finished")
    assert second.startswith("There are too few finished runs")


def test_protocol_paper_says_that_more_than_the_norm_batch_changes(tmp_path: Path) -> None:
    study = SampleStudy(protocol="paper").add("bn", 32, TEN).add("bn", 2, THIRTEEN)
    study.add("gn", 32, NEAR).add("gn", 2, TEN)
    given = advice(study, tmp_path)
    assert choices(given) == [(32, "bn"), (2, "gn")]
    assert "SGD batch and learning rate change with it" in given.sentences[0]


def test_what_recomputed_statistics_change_is_said_in_a_third_sentence(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, TEN, recomputed={0: 9.9, 1: 10.4, 2: 10.0})
    study.add("bn", 1, THIRTEEN, recomputed={0: 11.0, 1: 11.4, 2: 11.0}).add("gn", None, NEAR)
    given = advice(study, tmp_path)
    assert given.sentences[2] == (
        "With Batch Norm's running statistics computed anew from training images after training, its error is resolved "
        "1.97 points lower at norm batch 1: so much of it is evaluation, not training."
    )
    # The same runs evaluated otherwise are no arm to use instead, and no change of the norm batch.
    assert choices(given) == [(32, "bn"), (1, "gn")]
    assert given.sentences[0].count("points") == 1


def test_a_loss_by_recomputed_statistics_is_not_called_evaluation(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, TEN, recomputed=dict(zip(range(3), (12.0, 12.3, 12.0), strict=True)))
    last = advice(study.add("gn", None, NEAR), tmp_path).sentences[2]
    assert last.endswith("its error is resolved 2.00 points higher at norm batch 32.")


def test_the_correction_for_many_rows_reaches_the_advice(tmp_path: Path) -> None:
    # -1.0, -0.8, -1.2: t = 8.66, p = 0.013; nine rows make that 0.12 at best.
    barely: dict[int, float | str] = {0: 9.0, 1: 9.4, 2: 8.9}
    alone = SampleStudy().add("bn", 32, TEN).add("gn", None, barely)
    assert choices(advice(alone, tmp_path / "alone")) == [(32, "gn")]
    many = SampleStudy().add("bn", 32, TEN).add("bn", 8, NEAR).add("bn", 2, NEAR).add("gn", None, barely)
    many.add("ln", None, NEAR).add("in", None, NEAR)
    assert choices(advice(many, tmp_path / "many"))[0] == (32, "bn")
