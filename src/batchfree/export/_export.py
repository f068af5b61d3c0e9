"""Writing an export: to a folder that is whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from batchfree.errors import ArgumentError, unknown_name
from batchfree.export._mlflow import write_mlflow
from batchfree.export._tables import write_csv, write_parquet
from batchfree.export._tensorboard import write_tensorboard
from batchfree.records import CellRecord, StudyRecord, read_study

__all__ = ["FORMATS", "Format", "export"]

Format: TypeAlias = Literal["csv", "parquet", "tensorboard", "mlflow"]
FORMATS: tuple[Format, ...] = get_args(Format)

#: Lies in every folder that this module made: what has it may be replaced.
MARKER = ".batchfree-export"

Writer: TypeAlias = Callable[[StudyRecord, Sequence[CellRecord], Path, Path], None]
_WRITERS: dict[Format, Writer] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "tensorboard": write_tensorboard,
    "mlflow": write_mlflow,
}


def export(out: Path, to: Format, destination: Path | None = None) -> Path:
    """Writes the study in `out` for another tool and gives the folder it wrote.

    The folder appears whole or not at all, and replaces an earlier export. A study that is still running is exported
    as far as it is; so are runs that ended without a result, with their status.

    Args:
        out: the folder that was given to `batchfree study ... --out`.
        to: "csv" and "parquet": `cells` and `epochs`, a file each. "tensorboard": an event file per cell. "mlflow": a
            SQLite store `mlflow.db` with a run per cell.
        destination: the folder to write; `out/export/<to>` where `None`.

    Raises:
        RecordError: `out` holds no study, or a file in it is damaged or of another version.
        ArgumentError: `to` is none of `FORMATS`, or `destination` exists and is no earlier export.
        MissingExtraError: the format's library is not installed.
    """
    if to not in FORMATS:
        raise ArgumentError(unknown_name("export format", to, FORMATS))
    place = (out / "export" / to if destination is None else destination).absolute()
    if (place.exists() or place.is_symlink()) and not (place / MARKER).is_file():
        raise ArgumentError(
            f"{place} exists and is no export of batchfree. An export replaces only what an earlier one wrote. "
            f"Pass another destination, or move that away."
        )
    study, cells = read_study(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        (temporary / MARKER).write_text(f"{to}\n", encoding="utf-8")
        _WRITERS[to](study, cells, temporary, place)
        _move(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def _move(temporary: Path, place: Path) -> None:
    """`temporary` becomes `place`; an earlier export goes only when the new one is there."""
    if not place.exists():
        os.replace(temporary, place)
        return
    earlier = place.with_name(f".{place.name}.{os.getpid()}.old")
    os.replace(place, earlier)
    try:
        os.replace(temporary, place)
    except OSError:
        os.replace(earlier, place)
        raise
    shutil.rmtree(earlier)
