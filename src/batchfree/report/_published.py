"""The published curves that are drawn in grey beside a study's own: only numbers read in their source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from batchfree.records import Norm

__all__ = ["PublishedCurve", "published_curves"]


@dataclass(frozen=True)
class PublishedCurve:
    """Error against norm batch as a paper prints it."""

    source: str  # paper and table
    what: str  # network, data, quantity
    norm: Norm
    norm_batch: tuple[int, ...]  # largest first
    error_percent: tuple[float, ...]


def published_curves() -> tuple[PublishedCurve, ...]:
    """Batch Norm and Group Norm in Table 2 of Wu & He 2018.

    >>> [(curve.norm, curve.error_percent[-1]) for curve in published_curves()]
    [('bn', 34.7), ('gn', 24.1)]
    """
    text = resources.files("batchfree.report").joinpath("published.json").read_text(encoding="utf-8")
    return tuple(
        PublishedCurve(
            entry["source"], entry["what"], entry["norm"], tuple(entry["norm_batch"]), tuple(entry["error_percent"])
        )
        for entry in json.loads(text).values()
    )
