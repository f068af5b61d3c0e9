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

LEAVING_SECONDS = 30.0


def cell(
    assignments: Annotated[list[str], typer.Argument(help="The configuration, as key=value words.")],
    out: Annotated[Path, typer.Option(help="Folder of this one run.")],
) -> None:
    """One training run of a study, alone: the command that the report gives for each cell."""
    from batchfree.study import PARENT_VARIABLE, limit_memory, run_cell

    received: list[int] = []
    for number in STOPPING_SIGNALS:
        signal.signal(number, lambda given, _frame: received.append(given))
    study = os.environ.get(PARENT_VARIABLE)

    def should_stop() -> bool:
        if study is not None and os.getppid() != int(study):
            received.append(signal.SIGHUP)  # the study is gone, by whatever end
        return bool(received)

    limit_memory()
    # A cell whose study was killed may still be writing its last checkpoint.
    wait_seconds = LEAVING_SECONDS if study is not None else 0.0
    result = run_cell(_cell_config(assignments), out, should_stop, wait_seconds=wait_seconds)
    if result is None:
        print("Stopped; a checkpoint is written. The same command goes on from there.", flush=True)
        raise typer.Exit(SIGNALLED + received[0])
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
