"""results.csv: one row per cell, for whoever wants to compute with the study."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from batchfree.records import CellRecord, CellResult
from batchfree.report._arms import cell_state

__all__ = ["COLUMNS", "distinct_groups", "results_csv"]

COLUMNS = (
    "study",
    "norm",
    "norm_batch",
    "sgd_batch",
    "groups",
    "seed",
    "status",
    "error_percent",
    "final",
    "best",
    "loss",
    "seconds",
    "threads",
)


def results_csv(cells: Sequence[CellRecord]) -> str:
    """The table as text: a header, then a row per cell in the study's order; a field without a value is empty.

    Free text (reasons, paths) stays out of it, so that no reader has to guess about quotes and line ends.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(cell) for cell in cells)
    return text.getvalue()


def distinct_groups(result: CellResult | None) -> str:
    """The group counts of a network's norms, each once, in forward order: "1/2/4"; empty for Batch Norm."""
    return "" if result is None else "/".join(map(str, dict.fromkeys(result.num_groups)))


def _row(cell: CellRecord) -> list[object]:
    """The csv module writes `None` as an empty field and floats with every digit."""
    config, result = cell.config, cell.result
    return [
        config.study,
        config.norm,
        config.norm_batch,
        config.sgd_batch,
        distinct_groups(result),
        config.seed,
        cell_state(cell),
        result.error_percent if result else None,
        result.final_error_percent if result else None,
        result.best_error_percent if result else None,
        result.validation_loss if result else None,
        cell.cost.seconds if cell.cost else None,
        config.threads,
    ]
