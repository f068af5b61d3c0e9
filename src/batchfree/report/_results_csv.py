"""results.csv: one row per cell, for whoever wants to compute with the studies."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from batchfree.records import CellRecord, CellResult
from batchfree.report._arms import cell_state

__all__ = ["COLUMNS", "distinct_groups", "results_csv"]

#: Fields of the configuration that are numbers or names of the study's own, never paths.
CONFIG = (
    "norm",
    "norm_batch",
    "sgd_batch",
    "groups",
    "channels_per_group",
    "zero_gamma",
    "optimizer",
    "learning_rate",
    "epochs",
    "train_images",
    "seed",
)
RESULT = (
    "error_percent",
    "final_error_percent",
    "best_error_percent",
    "recomputed_error_percent",
    "validation_loss",
)
#: Of fine-tuning. New columns stand at the end, where they move no other for who reads by position.
FINE_TUNING = ("start", "pretraining", "keeps_weights", "half", "rotation")
#: Of BiT's rule; the same.
RULE = ("max_steps", "mixup", "stored_size")
COLUMNS = (
    "study",
    "cell_id",
    "model",
    *CONFIG,
    "threads",
    "status",
    *RESULT,
    "groups_used",
    "seconds",
    "seconds_per_step",
    "peak_memory_bytes",
    *FINE_TUNING,
    "initial_error_percent",
    *RULE,
)


def results_csv(studies: Mapping[str, Sequence[CellRecord]]) -> str:
    """The table as text: a header, then a row per cell in the studies' order; a field without a value is empty.

    Free text (reasons, paths) stays out of it, so that no reader has to guess about quotes and line ends.

    Args:
        studies: the cells of each study by its name.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(name, cell) for name, cells in studies.items() for cell in cells)
    return text.getvalue()


def distinct_groups(result: CellResult | None) -> str:
    """The group counts of a network's norms, each once, in forward order: "1/2/4"; empty for Batch Norm."""
    return "" if result is None else "/".join(map(str, dict.fromkeys(result.num_groups)))


def _row(study: str, cell: CellRecord) -> list[object]:
    """The csv module writes `None` as an empty field and floats with every digit."""
    config, result, cost = cell.config, cell.result, cell.cost
    return [
        study,
        config.cell_id,
        config.model,
        *(getattr(config, name) for name in CONFIG),
        config.threads,
        cell_state(cell),
        *(getattr(result, name) if result else None for name in RESULT),
        distinct_groups(result),
        *((cost.seconds, cost.seconds_per_step, cost.peak_memory_bytes) if cost else (None, None, None)),
        *(getattr(config, name) for name in FINE_TUNING),
        result.initial_error_percent if result else None,
        *(getattr(config, name) for name in RULE),
    ]
