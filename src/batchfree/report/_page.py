"""report.html: everything the page says, put into its template."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment as TemplateEnvironment
from jinja2 import FunctionLoader, StrictUndefined

from batchfree.records import CellRecord, StudyRecord
from batchfree.report._advice import ADVICE_RULE, advise
from batchfree.report._arms import Arm, cell_state, gather_arms
from batchfree.report._figure import Figure
from batchfree.report._provenance import environments, provenance
from batchfree.report._published import published_curves
from batchfree.report._results_csv import distinct_groups
from batchfree.report._statistics import (
    Difference,
    batch_norm_changes,
    differences_from_batch_norm,
    standard_deviation,
)
from batchfree.report._wording import MEANINGS, SHORT_NAMES, magnitude, percent, plain_number, plural, signed_points

__all__ = ["render_page"]


@dataclass(frozen=True)
class Notice:
    """How much of the study the page rests on."""

    total: int
    done: int
    diverged: int
    failed: int
    missing: int
    seeds: int


@dataclass(frozen=True)
class DifferenceRow:
    """A row of a table of differences: the numbers and what is to be known about them."""

    difference: Difference
    mean: str
    interval: str
    note: str


def render_page(study: StudyRecord, cells: Sequence[CellRecord], error: Figure, curves: Figure) -> str:
    """The page as one file: figures inside it, no script, nothing loaded from anywhere.

    Args:
        study, cells: as `records.read_study` gives them.
        error, curves: the two figures.
    """
    arms = gather_arms(cells)
    differences = [_difference_row(d, "BN") for d in differences_from_batch_norm(arms)]
    largest = f"BN at norm batch {next(iter(arms.batch_norm), '')}"
    changes = [_difference_row(d, largest) for d in batch_norm_changes(arms)]
    return (
        _template_environment()
        .get_template("page.html.j2")
        .render(
            study=study,
            cells=cells,
            arms=arms,
            notice=_notice(cells),
            advice=advise(arms),
            advice_rule=ADVICE_RULE,
            error=error,
            curves=curves,
            published=published_curves(),
            differences=differences,
            changes=changes,
            interval_count=sum(row.difference.interval is not None for row in differences + changes),
            provenance=provenance(study, cells),
            environments=environments(cells),
            short_names=SHORT_NAMES,
            norm_words=MEANINGS,
        )
    )


def _template_environment() -> TemplateEnvironment:
    # Not PackageLoader: it looks for a folder beside __init__.py and misses editable installs and zips.
    files = resources.files("batchfree.report")
    environment = TemplateEnvironment(
        loader=FunctionLoader(lambda name: files.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,  # data paths and reasons are text from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=plain_number,
        percent=percent,
        deviation=_deviation,
        data_uri=_data_uri,
        state=cell_state,
        groups=distinct_groups,
        plural=plural,
        seconds=_seconds,
    )
    return environment


def _data_uri(svg: bytes) -> str:
    """An SVG inside <img> keeps its ids to itself, so two figures cannot mix theirs up."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _notice(cells: Sequence[CellRecord]) -> Notice:
    states = [cell_state(cell) for cell in cells]
    return Notice(
        total=len(cells),
        done=states.count("done"),
        diverged=states.count("diverged"),
        failed=states.count("failed"),
        missing=states.count("missing"),
        seeds=len({cell.config.seed for cell in cells}),
    )


def _difference_row(difference: Difference, reference: str) -> DifferenceRow:
    interval = "none"
    if difference.interval is not None:
        low, high = difference.interval
        interval = f"{signed_points(low)} to {signed_points(high)}"
    notes = []
    if difference.interval is None and len(difference.seeds) >= 2:
        notes.append("every pair gives the same difference, so there is no spread to make an interval of")
    for lost, name in ((difference.reference_lost, reference), (difference.arm_lost, SHORT_NAMES[difference.norm])):
        if lost:
            notes.append(f"{name} diverged or failed in {plural(len(lost), 'more seed')}")
    return DifferenceRow(difference, signed_points(difference.mean) or "none", interval, "; ".join(notes))


def _deviation(arm: Arm) -> str:
    return magnitude(standard_deviation(list(arm.errors.values())))
