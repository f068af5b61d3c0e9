"""What is drawn in "error against norm batch", read back out of the SVG."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from batchfree.report import build_report
from tests.report.sample_study import SampleStudy
from tests.report.svg import Drawing

# The colours of the norms, as every figure has them.
BN, GN, WS, GREY = "#d55e00", "#0072b2", "#009e73", "#767676"


def draw(study: SampleStudy, out: Path) -> Drawing:
    build_report(study.write(out))
    return Drawing(out / "figures" / "error-vs-norm-batch.svg")


def test_every_seed_is_a_point_at_its_error_and_its_norm_batch(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 2, {0: 20.0, 1: 24.0}).add("bn", 32, {0: 10.0, 1: 12.0})
    points = draw(study, tmp_path).marks(BN)
    assert len(points) == 4
    (x_large, y_10), (_, y_12), (x_small, y_20), (_, y_24) = points
    assert x_large < x_small, "the largest norm batch stands at the left"
    # One linear scale: two points of error are as long anywhere.
    assert (y_10 - y_20) / (y_10 - y_12) == pytest.approx(5, rel=1e-4)
    assert (y_20 - y_24) / (y_10 - y_12) == pytest.approx(2, rel=1e-4)


def test_the_line_goes_through_the_means(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 12.0, 2: 17.0}).add("bn", 2, {0: 20.0})
    drawing = draw(study, tmp_path)
    ((_, at_32), (_, at_2)) = drawing.lines(BN)[0]
    heights = [y for _, y in drawing.marks(BN)]
    assert at_32 == pytest.approx(sum(heights[:3]) / 3, abs=1e-3)
    assert at_2 == pytest.approx(heights[3], abs=1e-3)


def test_a_batch_free_arm_is_one_horizontal_line_with_its_seeds_in_the_column_any(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0}).add("bn", 2, {0: 20.0}).add("gn", None, {0: 12.0, 1: 14.0})
    drawing = draw(study, tmp_path)
    ((start, height), (end, same_height)) = drawing.lines(GN)[0]
    seeds = drawing.marks(GN)
    rightmost_batch_norm = max(x for x, _ in drawing.marks(BN))
    assert height == same_height == pytest.approx((seeds[0][1] + seeds[1][1]) / 2, abs=1e-3)
    assert start < min(x for x, _ in drawing.marks(BN))
    assert rightmost_batch_norm < seeds[0][0] == seeds[1][0] < end
    assert drawing.labels[:3] == ["32", "2", "any"]
    assert "GN 13.0" in drawing.labels


def test_protocol_paper_has_no_column_any_and_a_line_per_norm(tmp_path: Path) -> None:
    study = SampleStudy(protocol="paper")
    for norm_batch, error in ((32, 10.0), (2, 20.0)):
        study.add("bn", norm_batch, {0: error}).add("gn", norm_batch, {0: 11.0})
    drawing = draw(study, tmp_path)
    assert "any" not in drawing.labels
    assert [len(line) for line in drawing.lines(GN)] == [2]
    # Side by side in each column, not one upon the other.
    assert not {x for x, _ in drawing.marks(GN)} & {x for x, _ in drawing.marks(BN)}


def test_the_paper_is_drawn_in_grey_with_its_source_and_the_words_different_data(tmp_path: Path) -> None:
    drawing = draw(SampleStudy().add("bn", 32, {0: 10.0}), tmp_path)
    batch_norm, group_norm = drawing.lines(GREY)
    assert len(batch_norm) == len(group_norm) == 5
    # Table 2: 23.6 to 34.7 for BN; GN ends where it began (24.1).
    assert group_norm[0][1] == pytest.approx(group_norm[-1][1], abs=1e-3)
    assert (batch_norm[0][1] - batch_norm[-1][1]) / (batch_norm[0][1] - group_norm[0][1]) == pytest.approx(
        (34.7 - 23.6) / (24.1 - 23.6), rel=1e-3
    )
    assert {"Different data:", "ResNet-50, ImageNet"} <= set(drawing.labels)
    assert "Wu &amp; He 2018, Table 2" in drawing.labels


def test_lost_runs_are_written_into_their_column(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 10.5}).add("bn", 1, {0: 30.0, 1: "diverged: loss is nan"})
    drawing = draw(study, tmp_path)
    assert len(drawing.marks(BN)) == 3
    assert "BN: 1 of 2" in drawing.labels


def test_numbers_that_are_no_percentage_are_not_drawn(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: math.nan, 2: 1e308, 3: 11.0})
    drawing = draw(study, tmp_path)
    assert len(drawing.marks(BN)) == 2
    assert "nan" not in "".join(f"{x} {y}" for line in drawing.lines(BN) for x, y in line)


def test_a_norm_batch_without_a_finished_run_is_a_gap_in_the_line(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 8, {0: 10.0}).add("bn", 4, {0: "missing"}).add("bn", 2, {0: 11.0})
    study.add("bn", 32, {0: 10.0})
    # 32 to 8 is drawn; 2 stands alone behind the gap.
    assert [len(piece) for piece in draw(study, tmp_path).lines(BN)] == [2, 1]


def test_labels_of_near_lines_do_not_overlap(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 40.0}).add("gn", None, {0: 10.0}).add("gn+ws", None, {0: 10.1})
    study.add("ln", None, {0: 10.2}).add("in", None, {0: 30.0})
    drawing = draw(study, tmp_path)
    texts = ("GN 10.0", "GN+WS 10.1", "LN 10.2", "IN 30.0")
    heights = [drawing.height_of(text) for text in texts]
    assert all(lower - upper > 8 for lower, upper in itertools.pairwise(heights)), heights
    # Moved apart around their middle; the one that stands free is on its line.
    assert drawing.height_of("IN 30.0") == pytest.approx(drawing.lines("#c79100")[0][0][1], abs=5)


def test_recomputed_statistics_are_a_dashed_line_with_hollow_points(tmp_path: Path) -> None:
    study = SampleStudy().add("bn", 32, {0: 10.0}, recomputed={0: 9.0}).add("bn", 2, {0: 20.0}, recomputed={0: 12.0})
    drawing = draw(study, tmp_path)
    (trained,), (recomputed,) = drawing.lines(BN, is_dashed=False), drawing.lines(BN, is_dashed=True)
    heights = [y for _, y in trained]
    assert [y for _, y in recomputed] == pytest.approx(
        [heights[0] + (heights[0] - heights[1]) / 10, heights[0] - (heights[0] - heights[1]) / 5], abs=1e-2
    )
    assert len(drawing.marks(BN)) == 2
    assert len(drawing.marks("#ffffff")) == 2
    assert "BN, statistics recomputed" in drawing.labels


def test_each_network_has_a_panel_of_its_own(tmp_path: Path) -> None:
    study = SampleStudy(axes=("model", "norm", "norm_batch"))
    for model, error in (("resnet20", 10.0), ("resnet56", 8.0)):
        study.add("bn", 32, {0: error}, model=model).add("bn", 2, {0: error + 5}, model=model)
    drawing = draw(study, tmp_path)
    assert [label for label in drawing.labels if label.startswith("ResNet-") and "," not in label] == [
        "ResNet-20",
        "ResNet-56",
    ]
    assert [len(line) for line in drawing.lines(BN)] == [2, 2]
