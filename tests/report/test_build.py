"""The report's files: what is written, when, and that the same study gives the same bytes."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from batchfree.errors import ArgumentError, RecordError
from batchfree.report import build_report
from tests.report.page import Page
from tests.report.sample_study import SampleStudy

FILES = ["figures/error-vs-norm-batch.svg", "figures/validation-curves.svg", "report.html", "results.csv"]


def written(out: Path) -> dict[str, bytes]:
    """Every file that is not the study's own."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file()]
    names = {path.relative_to(out).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(("cells/", "study.json"))}


def study() -> SampleStudy:
    return SampleStudy().add("bn", 32, {0: 10.0, 1: "missing"}).add("gn", None, {0: 9.0, 1: "failed: killed"})


def test_a_report_is_a_page_a_table_and_two_figures(tmp_path: Path) -> None:
    out = study().write(tmp_path)
    assert build_report(out) == out / "report.html"
    assert sorted(written(out)) == FILES


def test_the_same_study_gives_the_same_bytes(tmp_path: Path) -> None:
    out = study().write(tmp_path)
    build_report(out)
    first = written(out)
    build_report(out)
    assert written(out) == first


def test_a_later_report_replaces_an_earlier_one(tmp_path: Path) -> None:
    sample = study()
    out = sample.write(tmp_path)
    build_report(out)
    before = written(out)
    (out / "cells" / sample.cells[0].cell_id / "result.json").unlink()
    build_report(out)
    after = written(out)
    assert sorted(after) == FILES
    assert all(
        before[name] != after[name] for name in ("report.html", "results.csv", "figures/error-vs-norm-batch.svg")
    )


def test_a_study_without_cells_has_a_report(tmp_path: Path) -> None:
    out = SampleStudy().write(tmp_path)
    build_report(out)
    assert sorted(written(out)) == FILES
    assert (out / "results.csv").read_text().count("\n") == 1


def test_several_studies_are_one_page_one_table_and_a_folder_of_figures_each(tmp_path: Path) -> None:
    first = study().write(tmp_path / "a")
    second = SampleStudy(name="groups", title="How many groups?", figure="groups", axes=("groups",))
    second.add("gn", None, {0: 9.0}, groups=8).write(tmp_path / "b")
    to = tmp_path / "deep" / "report"
    assert build_report(first, tmp_path / "b", to=to) == to / "report.html"
    assert sorted(written(to)) == [
        "figures/groups/error-vs-groups.svg",
        "figures/groups/validation-curves.svg",
        "figures/norm-batch/error-vs-norm-batch.svg",
        "figures/norm-batch/validation-curves.svg",
        "report.html",
        "results.csv",
    ]
    before = written(to)
    build_report(first, tmp_path / "b", to=to)
    assert written(to) == before
    assert written(first) == {}, "a report elsewhere leaves the study's folder alone"


def test_studies_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    outs = [study().write(tmp_path / name) for name in ("one", "two")]
    to = tmp_path / "report"
    page = Page(build_report(*outs, to=to))
    assert [text for level, text in page.headings if level == 2 and "norm batch?" in text] == [
        f"Which normalisation at which norm batch? ({out})" for out in outs
    ]
    assert {path.parent.name for path in to.rglob("*.svg")} == {"norm-batch", "norm-batch-2"}
    with open(to / "results.csv", newline="") as file:
        assert {row["study"] for row in csv.DictReader(file)} == {f"norm-batch ({out})" for out in outs}


def test_a_folder_given_twice_counts_once(tmp_path: Path) -> None:
    out = study().write(tmp_path)
    assert build_report(out, out / ".." / out.name) == out / "report.html"


def test_several_studies_without_a_place_are_refused_with_what_to_pass(tmp_path: Path) -> None:
    outs = [study().write(tmp_path / name) for name in ("one", "two")]
    with pytest.raises(ArgumentError, match="to=FOLDER"):
        build_report(*outs)
    assert build_report(*outs, to=tmp_path / "report").exists()
    with pytest.raises(ArgumentError, match="no folder was given"):
        build_report()


def test_a_name_from_outside_is_no_path(tmp_path: Path) -> None:
    first = SampleStudy(name="../../escaped <x>", title="First").add("gn", None, {0: 9.0}).write(tmp_path / "a")
    second = SampleStudy(name="...", title="Second").add("gn", None, {0: 9.0}).write(tmp_path / "b")
    to = tmp_path / "report"
    build_report(first, second, to=to)
    assert sorted(path.name for path in (to / "figures").iterdir()) == ["escaped-x", "study"]


def test_a_folder_without_a_study_is_refused_and_left_empty(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"study\.json"):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    sample = study()
    out = sample.write(tmp_path)
    damaged = out / "cells" / sample.cells[0].cell_id / "result.json"
    damaged.write_text(damaged.read_text()[:20])
    with pytest.raises(RecordError, match=r"result\.json"):
        build_report(out)
    assert written(out) == {}


def test_importing_the_report_loads_no_framework() -> None:
    code = "import sys, batchfree.report; print(*sorted({'torch', 'torchvision', 'keras'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_place_that_cannot_be_written_is_refused_and_the_study_is_left_alone(tmp_path: Path) -> None:
    out = study().write(tmp_path / "study")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RecordError, match=r"file cannot be written.*pass another --to"):
        build_report(out, to=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert written(out) == {}
