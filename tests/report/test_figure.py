"""What all figures keep: the same bytes for the same numbers, and nothing of the user's own settings."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from batchfree.report import build_report
from tests.report.sample_study import SampleStudy
from tests.report.svg import Drawing

FIGURES = ("error-vs-norm-batch.svg", "validation-curves.svg")


def study() -> SampleStudy:
    sample = SampleStudy().add("bn", 32, {0: 10.0, 1: 10.5}).add("bn", 2, {0: 20.0, 1: 21.0})
    sample.add("bn+ws", 32, {0: 10.0, 1: 10.5})
    for norm in ("none", "gn", "gn+ws", "ln", "in"):
        sample.add(norm, None, {0: 12.0, 1: 12.5})
    return sample


def test_figures_do_not_depend_on_the_users_matplotlib_settings(tmp_path: Path) -> None:
    build_report(study().write(tmp_path / "plain"))
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "lines.linewidth": 9, "svg.hashsalt": "x"}):
        build_report(study().write(tmp_path / "odd"))
        assert matplotlib.rcParams["font.size"] == 30, "the user's settings are theirs again"
    for name in FIGURES:
        plain, odd = ((tmp_path / run / "figures" / name).read_bytes() for run in ("plain", "odd"))
        assert plain == odd


def test_figures_carry_no_date_and_load_nothing(tmp_path: Path) -> None:
    build_report(study().write(tmp_path))
    for name in FIGURES:
        drawing = Drawing(tmp_path / "figures" / name)
        assert "<dc:date>" not in drawing.text
        assert "<script" not in drawing.text
        for element in drawing.root.iter():
            links = [value for attribute, value in element.attrib.items() if attribute.endswith("href")]
            assert all(link.startswith("#") for link in links), links


def test_each_norm_has_a_colour_and_a_marker_of_its_own_in_the_legend(tmp_path: Path) -> None:
    build_report(study().write(tmp_path))
    for name in FIGURES:
        drawing = Drawing(tmp_path / "figures" / name)
        shapes = drawing.legend_marks()
        assert len(shapes) == 7
        assert len({colour for colour, _ in shapes}) == 7
        assert len({shape for _, shape in shapes}) == 7
