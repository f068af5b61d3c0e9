"""Tables that commands print: a study's plan, its state, its settings, a model's memory."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from batchfree.errors import StudyError
from batchfree.records import BATCH_FREE_NORMS, CellRecord, read_study

if TYPE_CHECKING:
    from batchfree.study import Study

__all__ = ["print_memory", "print_plan", "print_settings", "print_status"]

GIB = 1024**3
MIB = 1024**2


def print_plan(study: Study, out: Path, *, jobs: int | None, download: bool) -> None:
    """Every arm, how many of its runs are missing in `out`, and how long these take; nothing is written."""
    from batchfree.study import estimate_study

    console = Console(markup=False)
    if jobs is not None and jobs < 1:
        raise StudyError(f"--jobs {jobs} was given. It must be at least 1. Leave it out for as many as the cores hold.")
    study = study.decided(download=download)
    for words in study.chosen:  # before the steps are timed, which takes the memory of the whole SGD batch
        console.print(words, highlight=False)
    plan = estimate_study(study, out, download=download)
    table = _table("arm", "runs", "missing", "seconds per run", "note")
    for arm in plan.arms:
        seconds = "" if arm.seconds_per_run is None else f"{arm.seconds_per_run:,.0f}"
        table.add_row(arm.label, str(arm.runs), str(arm.missing), seconds, arm.note)
    console.print(table)
    slots = plan.slots if jobs is None else jobs
    console.print(
        f"{plan.missing} of {plan.runs} runs are missing in {out}: about {_duration(plan.seconds / slots)} at "
        f"{slots} at a time, from a few steps of each arm just now. Nothing was written.",
        highlight=False,
    )


def print_status(out: Path) -> None:
    """One row per run: its state, how far it is, its error or its reason."""
    study, cells = read_study(out)
    console = Console(markup=False)
    table = _table("run", "state", "epochs", "error", "note")
    for cell in cells:
        state, note = _state(out / "cells" / cell.config.cell_id, cell)
        error = cell.result.error_percent if cell.result else None
        progress = f"{sum(metrics.epoch > 0 for metrics in cell.metrics)}/{cell.config.epochs}"
        table.add_row(cell.config.cell_id, state, progress, "" if error is None else f"{error:.2f} %", note)
    console.print(table)
    counts = Counter(_state(out / "cells" / cell.config.cell_id, cell)[0] for cell in cells)
    total = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"{study.study}: {total}, of {len(cells)} runs", highlight=False)


def print_settings() -> None:
    """Every key that a study's file may set, with its default."""
    from batchfree.study import ArmSettings

    table = _table("key", "default", "meaning")
    for key, field in ArmSettings.model_fields.items():
        default = "" if field.default is None else str(field.default).lower()
        table.add_row(key, default, field.description or "")
    Console(markup=False).print(table)


def print_memory(model: str, image: str, budget: str, norms: list[str], classes: int) -> None:
    """What each arm needs per image, and the largest batch under the budget."""
    from batchfree.study import measure_memory, size_bytes

    limit = size_bytes(budget)
    table = _table("norm", "weights", "gradients and momentum", "per image", "batch at most", "at norm batch")
    for need in measure_memory(model, image=image, norms=norms, classes=classes):
        batch = need.largest_batch(limit)
        table.add_row(
            need.norm,
            f"{need.weights_bytes / MIB:,.1f} MiB",
            f"{need.training_bytes / MIB:,.1f} MiB",
            f"{need.bytes_per_image / MIB:,.2f} MiB",
            str(batch) if batch else "none",
            "any" if need.norm in BATCH_FREE_NORMS else "as large",
        )
    console = Console(markup=False)
    console.print(table)
    console.print(
        f"{model} on images of {image} in float32 with SGD and momentum, under {limit / GIB:.2f} GiB. Per image: what "
        f"the forward pass keeps for the backward pass, measured. The batch is an upper bound: the backward pass's own "
        f"maps and work space come on top.",
        highlight=False,
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_text = column in ("arm", "note", "run", "state", "key", "default", "meaning", "norm")
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    return table


def _state(folder: Path, cell: CellRecord) -> tuple[str, str]:
    if cell.result is not None:
        return cell.result.status, cell.result.reason
    written = [path.stat().st_mtime for name in ("log.txt", "metrics.jsonl") if (path := folder / name).exists()]
    if not written:
        return "waiting", ""
    return "unfinished", f"last written {_duration(time.time() - max(written))} ago"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
