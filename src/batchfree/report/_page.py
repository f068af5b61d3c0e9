"""report.html: everything the page says, put into its templates."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib import resources

from jinja2 import Environment as TemplateEnvironment
from jinja2 import FunctionLoader, StrictUndefined

from batchfree.records import NORMS
from batchfree.report._advice import ADVICE_RULE
from batchfree.report._arms import cell_state
from batchfree.report._results_csv import distinct_groups
from batchfree.report._study_view import StudyView
from batchfree.report._wording import (
    MEANINGS,
    SHORT_NAMES,
    START_MEANINGS,
    START_NAMES,
    beginning,
    percent,
    plain_number,
    plural,
)

__all__ = ["render_page"]


def render_page(views: Sequence[StudyView]) -> str:
    """The page as one file: figures inside it, no script, nothing loaded from anywhere.

    Args:
        views: at least one; several get a heading each, below one of the page.
    """
    used = {beginning(cell.config) for view in views for cell in view.cells}
    starts = [start for start in START_NAMES if start in used]
    present = {arm.norm for view in views for arm in view.arms.all}
    return (
        _template_environment()
        .get_template("page.html.j2")
        .render(
            views=views,
            is_single=len(views) == 1,
            advice_rule=ADVICE_RULE,
            short_names=SHORT_NAMES,
            start_words={START_NAMES[start]: START_MEANINGS[start] for start in starts} if len(starts) > 1 else {},
            norm_words={norm: MEANINGS[norm] for norm in NORMS if norm in present},
        )
    )


def _template_environment() -> TemplateEnvironment:
    # Not PackageLoader: it looks for a folder beside __init__.py and misses editable installs and zips.
    files = resources.files("batchfree.report")
    environment = TemplateEnvironment(
        loader=FunctionLoader(lambda name: files.joinpath("templates", name).read_text(encoding="utf-8")),
        autoescape=True,  # names, data paths and reasons are text from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=plain_number,
        percent=percent,
        data_uri=_data_uri,
        state=cell_state,
        groups=distinct_groups,
        plural=plural,
        seconds=_seconds,
        milliseconds=_milliseconds,
        mebibytes=_mebibytes,
    )
    return environment


def _data_uri(svg: bytes) -> str:
    """An SVG inside <img> keeps its ids to itself, so two figures cannot mix theirs up."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _mebibytes(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
