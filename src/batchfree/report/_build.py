"""From studies' folders to their report."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from batchfree.errors import ArgumentError, RecordError
from batchfree.records import CellRecord, StudyRecord, read_study, write_atomically
from batchfree.report._page import render_page
from batchfree.report._results_csv import results_csv
from batchfree.report._study_view import StudyView, view_study

__all__ = ["build_report"]


def build_report(*outs: Path, to: Path | None = None) -> Path:
    """Writes one report of the studies in `outs` and gives the path of its page.

    Works on studies that are still running or have lost cells: the page says what is missing. Building it again from
    the same files gives the same bytes. Needs no framework.

    Args:
        outs: folders that were given to `batchfree study ... --out`, in the order of the page; one given twice counts
            once.
        to: folder of the report; made where it is missing. A single study's own folder where `None`.

    Returns:
        `to/report.html`. Beside it are `to/results.csv`, one row per cell, and the drawings: `to/figures/*.svg` of a
        single study, `to/figures/<study>/*.svg` of several.

    Raises:
        RecordError: one of `outs` holds no study, or a file in it is damaged or of another version; nothing is written
            then. Or the report cannot be written: each file is then the old one or the new.
        ArgumentError: no folder was given, or several without `to`.
    """
    found: dict[Path, Path] = {}
    for out in outs:
        found.setdefault(out.resolve(), out)
    folders = list(found.values())
    if not folders:
        raise ArgumentError("no folder was given. A report is of one study or more. Pass the --out of a study.")
    if to is None and len(folders) > 1:
        raise ArgumentError(
            f"{len(folders)} studies were given, and no folder for their report. One study's report lies beside it; "
            f"that of several needs a place of its own. Pass to=FOLDER (on the command line, --to FOLDER)."
        )
    views, labels = _views([(out, *read_study(out)) for out in folders])
    page = render_page(views)
    table = results_csv({label: view.cells for label, view in zip(labels, views, strict=True)})

    place = folders[0] if to is None else to
    try:
        _write(place, views, table, page)
    except OSError as error:
        raise RecordError(
            f"{place} cannot be written ({error.strerror or error}). A folder on a disk with room is needed; the "
            f"studies are as they were. Make room and run `batchfree report` again, or pass another --to."
        ) from error
    return place / "report.html"


def _write(place: Path, views: list[StudyView], table: str, page: str) -> None:
    for view in views:
        figures = place / "figures" / view.key
        figures.mkdir(parents=True, exist_ok=True)
        for figure in view.figures:
            write_atomically(figures / f"{figure.name}.svg", figure.wide)
    write_atomically(place / "results.csv", table.encode())
    write_atomically(place / "report.html", page.encode())


def _views(studies: list[tuple[Path, StudyRecord, list[CellRecord]]]) -> tuple[list[StudyView], list[str]]:
    """The studies with keys of their own, and names for the table; equal names are told apart by their folders."""
    names = Counter(study.study for _, study, _ in studies)
    titles = Counter(study.title for _, study, _ in studies)
    keys: list[str] = []
    views, labels = [], []
    for out, study, cells in studies:
        is_repeated = names[study.study] > 1 or titles[study.title] > 1
        labels.append(f"{study.study} ({out})" if names[study.study] > 1 else study.study)
        keys.append("" if len(studies) == 1 else _unused_key(study.study, keys))
        title = f"{study.title} ({out})" if is_repeated else study.title
        views.append(view_study(keys[-1], title, study, cells))
    return views, labels


def _unused_key(name: str, taken: list[str]) -> str:
    """The name as an id and as a folder: letters, digits and hyphens, whatever a study's file is called."""
    base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "study"
    number = 1
    key = base
    while key in taken:
        number += 1
        key = f"{base}-{number}"
    return key
