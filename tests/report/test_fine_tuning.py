"""What the report shows of runs that start from a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchfree.records import CellConfig, Comparison, EpochMetrics
from batchfree.report import build_report, compare, gather_arms
from batchfree.study import load_study
from tests.report.page import Page
from tests.report.sample_study import SampleStudy, epochs
from tests.report.svg import Drawing

BN, FROZEN, CALIBRATED, COPIED = "#d55e00", "#7a4b2a", "#0072b2", "#c79100"
AGAINST_CALIBRATED = Comparison(
    title="Against calibrated",
    reference={"norm": "gn", "start": "calibrated"},
    only={"start": "trained", "norm_batch": (2, "none")},
)


def fine_tuning() -> SampleStudy:
    """Two seeds; before the first step BN had 50 %, calibrated GN 55 %, copied 80 %."""
    study = SampleStudy(
        name="fine-tune", figure="fine-tuning", axes=("norm", "start", "norm_batch"), compare=(AGAINST_CALIBRATED,)
    )
    study.add("bn", 32, {0: 5.0, 1: 6.0}, keeps_weights=True, half="first")
    trained: dict[str, Any] = {"pretraining": "bn-n32", "half": "second", "rotation": 30.0}
    for norm_batch in (4, 2):
        study.add("bn", norm_batch, {0: 20.0, 1: 21.0}, start="trained", **trained)
    study.add("bn-frozen", None, {0: 18.0, 1: 18.5}, start="trained", **trained)
    study.add("gn", None, {0: 17.0, 1: 17.9}, start="calibrated", **trained)
    study.add("gn", None, {0: 22.0, 1: 23.0}, start="copied", **trained)
    study.add("gn", None, {0: 30.0, 1: 31.0}, half="second", rotation=30.0)
    for cell in study.cells:
        if cell.pretraining is not None:
            with_start(study, cell)
    return study


def with_start(study: SampleStudy, cell: CellConfig) -> None:
    error = {"trained": 50.0, "calibrated": 55.0, "copied": 80.0}[cell.start]
    before = EpochMetrics(epoch=0, train_loss=None, validation_loss=1.0, error_percent=error + cell.seed)
    study.metrics[cell.cell_id] = [before, *epochs(20.0, start=40.0)]
    result = study.results[cell.cell_id]
    study.results[cell.cell_id] = result.model_copy(update={"initial_error_percent": error + cell.seed})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("report")
    return Page(build_report(fine_tuning().write(out)))


def test_the_error_right_after_the_conversion_is_a_column_of_arms_and_of_runs(page: Page) -> None:
    means = {row["Arm"]: row["Before step 1"] for row in page.table("Arm", "Mean error")}
    assert means["GN, calibrated"] == "55.5 %"
    assert means["GN, affine copied"] == "80.5 %"
    assert means["frozen BN"] == means["BN, trained, norm batch 2"] == "50.5 %"
    assert means["GN, from scratch"] == ""
    runs = page.table("Arm", "Seed")
    assert [row["Before step 1"] for row in runs if row["Arm"] == "GN, calibrated"] == ["55.00", "56.00"]


def test_the_pre_training_is_listed_and_in_no_arm(page: Page) -> None:
    assert [row["Error"] for row in page.table("Arm", "Seed") if row["Arm"] == "pre-training"] == ["5.00", "6.00"]
    arms = [row["Arm"] for row in page.table("Arm", "Mean error")]
    assert "BN, from scratch, norm batch 32" not in arms
    assert len(arms) == 6
    assert page.terms["Pre-training"].endswith("error 5.00 % (seed 0) and 6.00 % (seed 1)")
    assert page.terms["Data"].startswith("digits, second half, turned by 30 degrees")
    assert page.terms["Weights"] == "of the pre-training; from scratch"


def test_batch_norm_at_that_norm_batch_and_frozen_is_compared_with_calibrated_group_norm(page: Page) -> None:
    rows = page.table("Reference", "Arm")
    assert [(row["Reference"], row["Arm"]) for row in rows] == [
        ("GN, calibrated", "BN, trained, norm batch 2"),
        ("GN, calibrated", "frozen BN"),
    ]
    assert [row["Mean difference"] for row in rows] == ["+3.05", "+0.80"]


def test_the_built_in_study_compares_one_kind_of_evaluation_in_each_test(tmp_path: Path) -> None:
    study = load_study("fine-tune")
    sample = SampleStudy(name=study.name, axes=study.axes, compare=study.report.compare)
    trained: dict[str, Any] = {"start": "trained", "pretraining": "bn-n32"}
    for norm_batch in (4, 2, 1):
        errors = {0: 20.0 / norm_batch}
        sample.add("bn", norm_batch, errors, recomputed=errors, **trained)
        sample.add("bn", norm_batch, errors, recomputed=errors)
    sample.add("bn-frozen", None, {0: 18.0}, **trained)
    for start in ("fresh", "copied", "calibrated", "recovered"):
        sample.add("gn", None, {0: 17.0}, start=start, pretraining="bn-n32")
    sample.add("gn", None, {0: 30.0})
    arms = gather_arms(*sample.read(tmp_path))
    against_calibrated, starts, norm_batches = (compare(arms, given) for given in study.report.compare)
    assert {(row.reference.label, row.arm.label) for row in against_calibrated} == {
        ("GN, calibrated", "BN, trained, norm batch 2"),
        ("GN, calibrated", "BN, statistics recomputed, trained, norm batch 2"),
        ("GN, calibrated", "frozen BN"),
    }
    assert {row.arm.config.start for row in starts} == {"fresh", "copied", "recovered", "scratch"}
    assert [row.arm.norm_batch for row in norm_batches if not row.arm.is_recomputed] == [2, 1]
    assert [row.arm.norm_batch for row in norm_batches if row.arm.is_recomputed] == [2, 1]
    assert all(row.arm.is_recomputed == row.reference.is_recomputed for row in norm_batches)
    assert {row.reference.config.start for row in norm_batches} == {"trained"}


def test_runs_that_begin_with_given_weights_are_not_said_to_begin_from_scratch(page: Page, tmp_path: Path) -> None:
    assert page.terms["From scratch"].startswith("Random initial weights")
    study = SampleStudy(name="fine-tune", figure="fine-tuning", axes=("norm", "start"))
    study.add("bn", 4, {0: 20.0}, start="trained", pretraining="bn-n32")
    study.add("gn", None, {0: 30.0}, weights="pretrained")
    given = Page(build_report(study.write(tmp_path)))
    assert [row["Arm"] for row in given.table("Arm", "Mean error")] == ["BN, trained", "GN, given weights"]
    assert "without the pre-training" in given.terms["Given weights"]
    assert "scratch" not in given.text


def test_the_pre_training_error_of_a_seed_is_not_taken_for_that_of_a_lost_one(tmp_path: Path) -> None:
    study = SampleStudy(name="fine-tune", axes=("norm", "start"))
    study.add("bn", 32, {0: "failed: killed", 1: 6.0}, keeps_weights=True)
    study.add("gn", None, {0: "missing", 1: 9.0}, start="copied", pretraining="bn-n32")
    assert Page(build_report(study.write(tmp_path))).terms["Pre-training"].endswith("; error 6.00 % (seed 1)")


def test_the_curves_begin_before_the_first_step_and_starts_look_different(page: Page) -> None:
    drawing = Drawing(page.path.parent / "figures" / "fine-tuning.svg")
    assert [label for label in drawing.labels if label.startswith("norm batch")] == ["norm batch 4", "norm batch 2"]
    for colour in (BN, FROZEN, COPIED):
        lines = drawing.lines(colour, is_dashed=False)
        assert {len(line) for line in lines} == {4}, "epochs 0 to 3"
        assert all(line[0][1] < line[-1][1] for line in lines), "the first is the highest; y grows downwards"
    assert {len(line) for line in drawing.lines(CALIBRATED, is_dashed=True)} == {3}, "from scratch: epochs 1 to 3"


def test_a_fine_tuning_study_that_has_not_begun_says_so(tmp_path: Path) -> None:
    study = SampleStudy(name="fine-tune", figure="fine-tuning", axes=("norm", "start"))
    study.add("gn", None, {0: "missing"}, start="copied", pretraining="bn-n32")
    build_report(study.write(tmp_path))
    assert "no epoch finished yet" in Drawing(tmp_path / "figures" / "fine-tuning.svg").labels
