"""What is drawn in "error of each arm" and in "percentiles of features", read back out of the SVG."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchfree.records import EpochMetrics
from batchfree.report import build_report
from tests.report.page import Page
from tests.report.sample_study import SampleStudy
from tests.report.svg import Drawing

BN, GN, NONE, GREY = "#d55e00", "#0072b2", "#1a1a1a", "#767676"


def draw(study: SampleStudy, out: Path, name: str) -> Drawing:
    build_report(study.write(out))
    return Drawing(out / "figures" / f"{name}.svg")


def test_every_seed_is_a_point_and_the_stroke_is_their_mean(tmp_path: Path) -> None:
    study = SampleStudy(name="mine", figure="bars", axes=("norm",)).add("bn", 32, {0: 10.0, 1: 12.0, 2: 17.0})
    drawing = draw(study.add("gn", None, {0: 9.0}), tmp_path, "errors")
    points = drawing.marks(BN)
    assert len({y for _, y in points}) == 1
    (x_10, x_12, x_17) = (x for x, _ in points)
    assert (x_17 - x_10) / (x_12 - x_10) == pytest.approx(3.5, rel=1e-4)
    ((start, end),) = drawing.lines(BN)
    assert start[0] == end[0] == pytest.approx((x_10 + x_12 + x_17) / 3, abs=1e-3)
    assert points[0][1] < drawing.marks(GN)[0][1], "Batch Norm stands above"
    assert {"13.0", "9.00", "BN", "GN"} <= set(drawing.labels)


def test_rows_of_one_setting_stand_together_under_its_name(tmp_path: Path) -> None:
    study = SampleStudy(name="mine", figure="bars", axes=("model", "norm"))
    for model in ("resnet20", "$\\frac$ & <y>"):
        study.add("bn", 32, {0: 10.0, 1: "out of memory: x"}, model=model).add("gn", None, {0: 9.0}, model=model)
    labels = draw(study, tmp_path, "errors").labels
    assert [label for label in labels if label in ("ResNet-20", "$\\frac$ &amp; &lt;y&gt;")] == [
        "ResNet-20",
        "$\\frac$ &amp; &lt;y&gt;",
    ]
    assert labels.count("BN") == 3, "two rows and the legend"
    assert labels.count("1 of 2 lost") == 2


def test_published_rows_are_grey_and_say_different_data(tmp_path: Path) -> None:
    study = SampleStudy(name="bit", figure="bars", axes=("norm",)).add("bn", 32, {0: 10.0}).add("gn", None, {0: 9.0})
    drawing = draw(study, tmp_path, "errors")
    assert len(drawing.marks(GREY)) == 4
    bn, bn_ws, gn, gn_ws = (x for x, _ in drawing.marks(GREY))
    assert gn_ws < bn_ws < bn < gn, "errors, not the accuracies that the source prints"
    assert {"Different data:", "BiT, Table 4"} <= set(drawing.labels)


def percentiles(scale: float) -> list[EpochMetrics]:
    return [
        EpochMetrics(
            epoch=epoch,
            train_loss=1.0,
            validation_loss=1.0,
            error_percent=10.0,
            feature_percentiles=(-2.0 * scale, -scale, scale, 3.0 * scale * epoch),
        )
        for epoch in (1, 2)
    ]


@pytest.mark.parametrize(("scale", "is_shared"), [(2.0, True), (100.0, False)])
def test_percentiles_are_four_lines_in_a_panel_per_arm(tmp_path: Path, scale: float, is_shared: bool) -> None:
    study = SampleStudy(name="vgg", figure="percentiles", axes=("norm",)).add("none", None, {0: 10.0})
    study.add("gn", None, {0: 9.0})
    for cell, factor in zip(study.cells, (scale, 1.0), strict=True):
        study.metrics[cell.cell_id] = percentiles(factor)
    drawing = draw(study, tmp_path, "feature-percentiles")
    lines = drawing.lines(GN)
    assert len(lines) == 8, "a seed and a mean for each percentile"
    ends = [line[-1][1] for line in lines[1::2]]
    # -2, -1, 1 and 6 at the last epoch, on one linear scale that grows upwards.
    assert [(ends[0] - end) / (ends[0] - ends[1]) for end in ends] == pytest.approx([0, 1, 3, 8], rel=1e-3)
    own = [line[-1][1] for line in drawing.lines(NONE)[1::2]]
    assert ((own[0] - own[1]) / (ends[0] - ends[1]) == pytest.approx(scale, rel=1e-3)) == is_shared
    page = Page(tmp_path / "report.html")
    assert ("One scale for all panels." in page.captions[0]) == is_shared
    assert page.tables[0] == [["GN minus BN", "-0.4"]]


def test_a_panel_without_percentiles_says_so(tmp_path: Path) -> None:
    study = SampleStudy(name="vgg", figure="percentiles", axes=("norm",)).add("gn", None, {0: 9.0, 1: "missing"})
    assert "no percentiles recorded yet" in draw(study, tmp_path, "feature-percentiles").labels


def test_groups_are_two_panels_with_both_halves_of_the_papers_table(tmp_path: Path) -> None:
    study = SampleStudy(name="groups", figure="groups", axes=("groups", "channels_per_group"))
    for size, error in ((16, 8.0), (4, 9.0), (1, 12.0)):
        study.add("gn", None, {0: error}, groups=size).add("gn", None, {0: error + 1}, channels_per_group=size)
    drawing = draw(study, tmp_path, "error-vs-groups")
    assert [len(line) for line in drawing.lines(GN)] == [3, 3]
    assert [len(line) for line in drawing.lines(GREY)] == [7, 7]
    xs = [x for x, _ in drawing.lines(GN)[0]]
    heights = [y for _, y in drawing.lines(GN)[0]]
    assert xs == sorted(xs)
    assert (heights[0] - heights[2]) / (heights[0] - heights[1]) == pytest.approx(4, rel=1e-3)
    assert drawing.labels.count("number of groups") == 2
    assert drawing.labels.count("channels per group") == 2
