"""The two tables of a study, cells and epochs, as CSV and as Parquet."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from batchfree.errors import require
from batchfree.records import CellConfig, CellRecord, CellResult, Cost, Environment, EpochMetrics, StudyRecord

__all__ = ["cell_table", "epoch_table", "write_csv", "write_parquet"]

Value: TypeAlias = str | int | float | bool | None
Kind: TypeAlias = type[str] | type[int] | type[float] | type[bool]
#: Column by column: its kind and its values.
Table: TypeAlias = dict[str, tuple[Kind, list[Value]]]

PERCENTILES = (1, 20, 80, 99)


def _fields(schema: type[CellConfig] | type[CellResult] | type[Cost] | type[Environment], *left_out: str) -> list[str]:
    return [name for name in schema.model_fields if name not in ("schema_version", *left_out)]


def _kind(annotation: Any) -> Kind:
    """Of the values of a field: a number that may also be a word ("auto"), and whatever has parts, is text."""
    if get_origin(annotation) is Annotated:  # a number with limits
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        kinds = {_kind(each) for each in get_args(annotation) if each is not NoneType}
        return kinds.pop() if len(kinds) == 1 else str
    return annotation if annotation in (int, float, bool) else str


#: Of every column that is no text.
_KINDS: dict[str, Kind] = {
    **{
        name: _kind(field.annotation)
        for schema in (CellConfig, CellResult, Cost, EpochMetrics)
        for name, field in schema.model_fields.items()
    },
    "seconds_per_step": float,
}


def cell_table(cells: Sequence[CellRecord]) -> Table:
    """A row per cell: its configuration, outcome, cost and environment; empty where something is not known yet."""
    rows = [_cell_row(cell) for cell in cells]
    names = [
        "cell_id",
        *_fields(CellConfig),
        *_fields(CellResult, "cell_id"),
        *_fields(Cost),
        "seconds_per_step",
        *(f"environment_{name}" for name in _fields(Environment)),
    ]
    return {name: (_KINDS.get(name, str), [_as_kind(name, row.get(name)) for row in rows]) for name in names}


def _cell_row(cell: CellRecord) -> dict[str, object]:
    result, cost, environment = cell.result, cell.cost, cell.environment
    row: dict[str, object] = {"status": "missing", **cell.config.model_dump()}
    if result is not None:
        row |= result.model_dump() | {"num_groups": "/".join(map(str, result.num_groups))}
    if cost is not None:
        row |= cost.model_dump() | {"seconds_per_step": cost.seconds_per_step}
    if environment is not None:
        row |= {f"environment_{name}": value for name, value in environment.model_dump().items()}
    return row | {"cell_id": cell.config.cell_id}


def epoch_table(cells: Sequence[CellRecord]) -> Table:
    """A row per finished epoch of each cell; `cell_id` leads to the other table."""
    numbers = ("epoch", "train_loss", "validation_loss", "error_percent", "recomputed_error_percent")
    every = [(cell.config.cell_id, metrics) for cell in cells for metrics in cell.metrics]
    table: Table = {"cell_id": (str, [cell_id for cell_id, _ in every])}
    for name in numbers:
        table[name] = (_KINDS[name], [getattr(metrics, name) for _, metrics in every])
    for index, percentile in enumerate(PERCENTILES):
        table[f"feature_percentile_{percentile}"] = (
            float,
            [None if (values := metrics.feature_percentiles) is None else values[index] for _, metrics in every],
        )
    return table


def _as_kind(name: str, value: Any) -> Value:
    return None if value is None else _KINDS.get(name, str)(value)


def write_csv(study: StudyRecord, cells: Sequence[CellRecord], folder: Path, place: Path) -> None:
    """`cells.csv` and `epochs.csv`; a field without a value is empty, a truth value is true or false."""
    for name, table in (("cells", cell_table(cells)), ("epochs", epoch_table(cells))):
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table)
            columns = [[_word(value) for value in values] for _, values in table.values()]
            writer.writerows(zip(*columns, strict=True))


def _word(value: Value) -> Value:
    return ("true" if value else "false") if isinstance(value, bool) else value


def write_parquet(study: StudyRecord, cells: Sequence[CellRecord], folder: Path, place: Path) -> None:
    """`cells.parquet` and `epochs.parquet`, nulls where there is no value; study.json is their metadata."""
    arrow = require("pyarrow", "export")
    parquet = require("pyarrow.parquet", "export")
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
    for name, table in (("cells", cell_table(cells)), ("epochs", epoch_table(cells))):
        schema = arrow.schema(
            [(column, kinds[kind]) for column, (kind, _) in table.items()],
            metadata={"batchfree.study": study.model_dump_json()},
        )
        columns = {column: values for column, (_, values) in table.items()}
        parquet.write_table(arrow.table(columns, schema=schema), folder / f"{name}.parquet")
