"""Reading and writing the files: atomically, and refusing what is damaged or of another version."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from batchfree.errors import RecordError
from batchfree.records._config import CellConfig
from batchfree.records._record import SCHEMA_VERSION, Record
from batchfree.records._schema import CellRecord, CellResult, Cost, Environment, EpochMetrics, StudyRecord

__all__ = [
    "read_cell",
    "read_metrics",
    "read_record",
    "read_study",
    "write_atomically",
    "write_record",
]

RecordT = TypeVar("RecordT", bound=Record)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `path` so that a reader, or a power cut, finds the old content or the new, never a part.

    Temporary file beside it, flush, fsync, replace, fsync of the folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_record(path: Path, record: Record) -> None:
    """Writes `record` as indented JSON, atomically."""
    write_atomically(path, (record.model_dump_json(indent=2) + "\n").encode())


def read_record(path: Path, schema: type[RecordT]) -> RecordT:
    """Reads what `write_record` wrote.

    Raises:
        RecordError: the file cannot be read, is not JSON, is of another version or has other keys.
    """
    return _parse(path, _read_text(path), schema)


def read_metrics(path: Path) -> tuple[EpochMetrics, ...]:
    """Every finished epoch of a cell; none where the file does not exist yet.

    Raises:
        RecordError: a line is not a record. A last line without its line end was cut short and is left out.
    """
    if not path.exists():
        return ()
    lines = _read_text(path).split("\n")[:-1]  # what follows the last line end was cut short
    return tuple(_parse(path, line, EpochMetrics) for line in lines)


def read_cell(folder: Path, config: CellConfig | None = None) -> CellRecord:
    """All that is on disk of the cell in `folder`; `config` where a study knows it, and the cell may not have begun."""

    def optional(name: str, schema: type[RecordT]) -> RecordT | None:
        path = folder / name
        return read_record(path, schema) if path.exists() else None

    return CellRecord(
        config=read_record(folder / "config.json", CellConfig) if config is None else config,
        result=optional("result.json", CellResult),
        metrics=read_metrics(folder / "metrics.jsonl"),
        environment=optional("environment.json", Environment),
        cost=optional("cost.json", Cost),
    )


def read_study(out: Path) -> tuple[StudyRecord, list[CellRecord]]:
    """The study in `out` and its cells, in the study's order; a cell that never started has only its configuration.

    Raises:
        RecordError: `out` holds no study, or a file in it is damaged or of another version.
    """
    path = out / "study.json"
    if not path.exists():
        raise RecordError(
            f"{out} holds no study: {path.name} is not there. Pass the folder that was given to "
            f"`batchfree study ... --out`."
        )
    study = read_record(path, StudyRecord)
    return study, [read_cell(out / "cells" / config.cell_id, config) for config in study.cells]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(
            f"{path} cannot be read: {error}. It should be a file that batchfree wrote. "
            f"Delete the cell's folder and run the study again."
        ) from error


def _parse(path: Path, text: str, schema: type[RecordT]) -> RecordT:
    try:
        version = json.loads(text).get("schema_version")
    except (json.JSONDecodeError, AttributeError) as error:
        raise RecordError(
            f"{path} is not a JSON record ({error}). It was cut short or edited. "
            f"Delete {'the study' if path.name == 'study.json' else 'the cell'}'s folder and run the study again."
        ) from error
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema version {version}; this batchfree reads version {SCHEMA_VERSION}. "
            f"Use the batchfree that wrote it, or another --out."
        )
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecordError(
            f"{path} does not hold a {schema.__name__}: {problems}. "
            f"Use the batchfree that wrote it; if it is damaged, delete it and run again."
        ) from None
