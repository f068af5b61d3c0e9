"""`batchfree cell`: one training run, alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from batchfree.cli._exit import SIGNALLED, STOPPING_SIGNALS
from batchfree.records import CellConfig, CellResult

__all__ = ["cell"]

#: More than NFS takes to give up the lock of a node that is lost (90 s).
LOCK_SECONDS = 120.0


def cell(
    assignments: Annotated[list[str], typer.Argument(help="The configuration, as key=value words.")],
    out: Annotated[Path, typer.Option(help="Folder of this one run.")],
) -> None:
    """One training run of a study, alone: the command that the report gives for each cell."""
    from batchfree.study import PARENT_VARIABLE, is_parent_gone, limit_memory, run_cell

    received: list[int] = []
    for number in STOPPING_SIGNALS:
        signal.signal(number, lambda given, _frame: received.append(given))

    def should_stop() -> bool:
        if is_parent_gone():
            received.append(signal.SIGHUP)  # the study is gone, by whatever end
        return bool(received)

    limit_memory()
    # Started by a study, it may follow on a process of the same cell that is still about to stop.
    lock_seconds = LOCK_SECONDS if PARENT_VARIABLE in os.environ else 0.0
    result = run_cell(_cell_config(assignments), out, should_stop, lock_seconds=lock_seconds)
    is_first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes
    if result is None:
        if is_first:
            print("Stopped; a checkpoint is written. The same command goes on from there.", flush=True)
        # another worker may have been told, and not this one
        raise typer.Exit(SIGNALLED + (received[0] if received else signal.SIGTERM))
    if is_first:
        print(_outcome(result))


def _cell_config(assignments: list[str]) -> CellConfig:
    values = dict(word.partition("=")[::2] for word in assignments)
    try:
        return CellConfig.model_validate_strings(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise typer.BadParameter(f"{problems}. A cell needs: {', '.join(CellConfig.model_fields)}.") from None


def _outcome(result: CellResult) -> str:
    if result.status == "done":
        return f"{result.cell_id}: {result.error_percent:.2f} % error (median of the last epochs)"
    return f"{result.cell_id}: {result.status}: {result.reason}"
