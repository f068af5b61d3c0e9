"""What is drawn in "validation curves", read back out of the SVG."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from batchfree.records import CellConfig
from batchfree.report import build_report
from tests.report.page import Page
from tests.report.sample_study import SampleStudy, epochs
from tests.report.svg import Drawing

BN, GN = "#d55e00", "#0072b2"


def draw(study: SampleStudy, out: Path) -> Drawing:
    build_report(study.write(out))
    return Drawing(out / "figures" / "validation-curves.svg")


def cell(study: SampleStudy, norm: str, seed: int) -> CellConfig:
    return next(config for config in study.cells if config.norm == norm and config.seed == seed)


def test_there_is_a_panel_per_norm_batch_largest_first(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 2, {0: 20.0}).add("bn", 32, {0: 10.0}).add("gn", None, {0: 12.0})
    titles = [label for label in draw(study, tmp_path).labels if label.startswith("norm batch")]
    assert titles == ["norm batch 32", "norm batch 2"]


def test_batch_free_arms_are_repeated_in_every_panel_at_the_same_height(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0}).add("bn", 2, {0: 20.0}).add("gn", None, {0: 12.0})
    ends = draw(study, tmp_path).marks(GN)
    assert len(ends) == 2
    assert ends[0][0] < ends[1][0]
    assert ends[0][1] == ends[1][1]


def test_thick_line_is_the_mean_of_the_thin_ones(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 20.0})
    first, second, mean = draw(study, tmp_path).lines(BN)
    heights = [(low + high) / 2 for (_, low), (_, high) in zip(first, second, strict=True)]
    assert [y for _, y in mean] == pytest.approx(heights, abs=1e-3)


def test_a_diverged_run_is_a_thin_line_and_in_no_mean(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: "diverged: loss is nan"})
    study.metrics[cell(study, "bn", 1).cell_id] = epochs(40.0, start=45.0, count=2)
    done, diverged, mean = draw(study, tmp_path).lines(BN)
    assert mean == done
    assert len(diverged) == 2


def test_a_running_cell_is_drawn_as_far_as_it_is(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 11.0})
    study.write(tmp_path)
    (tmp_path / "cells" / cell(study, "bn", 1).cell_id / "result.json").unlink()
    build_report(tmp_path)
    finished, running, mean = Drawing(tmp_path / "figures" / "validation-curves.svg").lines(BN)
    assert len(running) == 3
    assert mean == finished


def test_a_study_of_one_epoch_shows_its_points(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 12.0})
    for config in study.cells:
        study.metrics[config.cell_id] = epochs(10.0, start=10.0, count=1)
    assert len(draw(study, tmp_path).marks(BN)) == 1


def test_an_epoch_that_is_no_percentage_is_a_gap(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0})
    middle_is_nan = list(epochs(10.0, start=20.0))
    middle_is_nan[1] = middle_is_nan[1].model_copy(update={"error_percent": math.nan})
    study.metrics[study.cells[0].cell_id] = middle_is_nan
    assert all(len(piece) == 1 for piece in draw(study, tmp_path).lines(BN))


def test_the_second_half_of_the_epochs_fills_the_panels(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0}).add("gn", None, {0: 14.0})
    # Epochs 1 to 3 of 3; the second half is epochs 2 and 3: 50 and 10, 52 and 14 with a start at 90.
    for config, last in zip(study.cells, (10.0, 14.0), strict=True):
        study.metrics[config.cell_id] = epochs(last, start=90.0)
    ticks = [float(label) for label in draw(study, tmp_path).labels if label.replace(".", "").isdigit()]
    assert 50.0 in ticks
    assert max(ticks) < 70


def test_panels_without_an_epoch_say_so(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0}).add("bn", 2, {0: "missing"})
    assert draw(study, tmp_path).labels.count("no epoch finished yet") == 1


@pytest.mark.parametrize(
    ("start", "middle", "said"),
    [(60.0, 12.0, "what is above it in the first is cut"), (1.0, 12.0, "below"), (11.1, 11.0, "")],
)
def test_the_caption_says_what_is_cut(tmp_path: Path, start: float, middle: float, said: str) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0})
    three = [epochs(value, count=1, start=value)[0] for value in (start, middle, 10.0)]
    numbered = [metrics.model_copy(update={"epoch": index + 1}) for index, metrics in enumerate(three)]
    study.metrics[study.cells[0].cell_id] = numbered
    caption = next(text for text in Page(build_report(study.write(tmp_path))).captions if text.startswith("Validation"))
    assert (said in caption) if said else ("cut" not in caption)


def test_other_axes_make_panels_and_the_norms_share_them(tmp_path: Path) -> None:
    study = SampleStudy(axes=("norm", "zero_gamma"))
    for zero_gamma, error in ((True, 10.0), (False, 11.0)):
        study.add("bn", 32, {0: error}, zero_gamma=zero_gamma).add("gn", None, {0: error + 3}, zero_gamma=zero_gamma)
    drawing = draw(study, tmp_path)
    assert [label for label in drawing.labels if "gamma" in label] == ["last gamma 0", "last gamma 1"]
    assert (len(drawing.marks(BN)), len(drawing.marks(GN))) == (2, 2)


def test_a_study_of_curves_shows_training_loss_beside_validation_error(tmp_path: Path) -> None:
    study = (
        SampleStudy(name="norms", axes=("norm",), figure="curves").add("bn", 32, {0: 10.0}).add("gn", None, {0: 12.0})
    )
    build_report(study.write(tmp_path))
    drawing = Drawing(tmp_path / "figures" / "training-and-validation-curves.svg")
    assert {"training loss (nats)", "validation error (%)", "Wu &amp; He 2018, Table 1"} <= set(drawing.labels)
    # The loss is 0.1 in every epoch: a level line; the error falls from 60.
    loss, _, error, _ = drawing.lines(BN)
    assert len({y for _, y in loss}) == 1
    assert error[0][1] < error[-1][1]
    assert not (tmp_path / "figures" / "validation-curves.svg").exists()
