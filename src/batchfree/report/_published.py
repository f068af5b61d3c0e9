"""The published numbers that stand in grey beside a study's own: only numbers read in their source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, TypeAlias

from batchfree.records import FigureKind, Norm, StudyRecord

__all__ = ["Exhibit", "PublishedSeries", "published_exhibits"]

Quantity: TypeAlias = Literal["error", "accuracy", "difference"]

#: Studies that are not built in are shown with what belongs to their figure.
_BY_FIGURE: dict[FigureKind, str] = {"norm-batch": "norm-batch", "groups": "groups", "curves": "norms"}


@dataclass(frozen=True)
class PublishedSeries:
    """The numbers of one network and norm, as printed."""

    fact: str  # where the number stands in the project's collection, for the test against it
    key: str  # the number's name there; empty for a whole series
    label: str
    norm: Norm
    printed: tuple[float, ...]  # in the unit of the exhibit; one per x of it, or one


@dataclass(frozen=True)
class Exhibit:
    """A table or a figure of a publication."""

    title: str  # two short lines: network and data; where it was printed
    source: str
    what: str  # network, data, quantity
    quantity: Quantity
    caveat: str  # what is known to be wrong with it; empty where nothing is
    axis: str | None  # the field of CellConfig that `x` are values of; None where each series is one number
    axis_label: str
    x: tuple[int, ...]  # largest first
    series: tuple[PublishedSeries, ...]

    def errors(self, series: PublishedSeries) -> tuple[float, ...]:
        """The series as error rates in percent: 100 minus what is printed where that is an accuracy."""
        return tuple(100 - value if self.quantity == "accuracy" else value for value in series.printed)


def published_exhibits(study: StudyRecord) -> tuple[Exhibit, ...]:
    """What is published about the question of `study`; empty where nothing is."""
    built_in = {name for entry in _entries() for name in entry["shown_with"]}
    name = study.study if study.study in built_in else _BY_FIGURE.get(study.report.figure)
    return tuple(_exhibit(entry) for entry in _entries() if name in entry["shown_with"])


def _entries() -> list[dict[str, Any]]:
    text = resources.files("batchfree.report").joinpath("published.json").read_text(encoding="utf-8")
    return list(json.loads(text))


def _exhibit(entry: dict[str, Any]) -> Exhibit:
    series = tuple(
        PublishedSeries(s["fact"], s.get("key", ""), s["label"], s["norm"], tuple(s["y"])) for s in entry["series"]
    )
    return Exhibit(
        title=entry["title"],
        source=entry["source"],
        what=entry["what"],
        quantity=entry["quantity"],
        caveat=entry["caveat"],
        axis=entry.get("axis"),
        axis_label=entry.get("axis_label", ""),
        x=tuple(entry.get("x", ())),
        series=series,
    )
