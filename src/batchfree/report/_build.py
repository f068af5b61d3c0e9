"""From a study's folder to its report."""

from __future__ import annotations

from pathlib import Path

from batchfree.records import read_study, write_atomically
from batchfree.report._arms import gather_arms
from batchfree.report._curve_figure import curve_figure
from batchfree.report._error_figure import error_figure
from batchfree.report._page import render_page
from batchfree.report._results_csv import results_csv

__all__ = ["build_report"]


def build_report(out: Path) -> Path:
    """Writes the report of the study in `out` and gives the path of its page.

    Works on a study that is still running or has lost cells: the page says what is missing. Building it again from
    the same files gives the same bytes.

    Args:
        out: the folder that was given to `batchfree study ... --out`.

    Returns:
        `out/report.html`. Beside it are `out/results.csv`, one row per cell, and `out/figures/*.svg`.

    Raises:
        RecordError: `out` holds no study, or a file in it is damaged or of another version; nothing is written then.
    """
    study, cells = read_study(out)
    arms = gather_arms(cells)
    error, curves = error_figure(arms), curve_figure(arms)
    page = render_page(study, cells, error, curves)

    figures = out / "figures"
    figures.mkdir(exist_ok=True)
    write_atomically(figures / "error-vs-norm-batch.svg", error.wide)
    write_atomically(figures / "validation-curves.svg", curves.wide)
    write_atomically(out / "results.csv", results_csv(cells).encode())
    write_atomically(out / "report.html", page.encode())
    return out / "report.html"
