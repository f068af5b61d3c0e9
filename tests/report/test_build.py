"""The report's files: what is written, when, and that the same study gives the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from batchfree.errors import RecordError
from batchfree.report import build_report
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
