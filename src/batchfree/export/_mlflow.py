"""A study as an MLflow store: one run per cell in a SQLite file."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchfree.errors import require
from batchfree.export._tensorboard import scalars
from batchfree.records import CellRecord, StudyRecord

__all__ = ["write_mlflow"]

FILE_NAME = "mlflow.db"
#: A batch that MLflow takes at once.
METRICS_PER_BATCH = 1000


def write_mlflow(study: StudyRecord, cells: Sequence[CellRecord], folder: Path, place: Path) -> None:
    """`mlflow.db`: one experiment, in it a run per cell with its parameters, metrics per epoch and status as a tag.

    Show it with `mlflow ui --backend-store-uri sqlite:///<folder>/mlflow.db`. Records hold no times, so those of
    epochs are 0. MLflow's usage telemetry is off while this runs, unless the environment asks for it.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    require("sqlalchemy", "export")
    require("alembic", "export")
    mlflow = require("mlflow", "export")
    entities = require("mlflow.entities", "export")
    with _quiet("mlflow", "alembic"):
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / FILE_NAME}")
        experiment = client.create_experiment(
            study.study, artifact_location=(place / "artifacts").as_uri(), tags={"batchfree.title": study.title}
        )
        for cell in cells:
            config, result = cell.config, cell.result
            run = client.create_run(experiment, run_name=config.cell_id, start_time=0).info.run_id
            given = {key: value for key, value in config.model_dump().items() if value is not None}
            client.log_batch(
                run,
                params=[entities.Param(key, str(value)) for key, value in given.items() if key != "schema_version"],
                tags=[entities.RunTag(key, value) for key, value in _tags(cell).items()],
            )
            numbers = [
                entities.Metric(name, value, 0, metrics.epoch)
                for metrics in cell.metrics
                for name, value in scalars(metrics).items()
            ]
            numbers += [entities.Metric(name, value, 0, 0) for name, value in _totals(cell).items()]
            for start in range(0, len(numbers), METRICS_PER_BATCH):
                client.log_batch(run, metrics=numbers[start : start + METRICS_PER_BATCH])
            if result is not None:
                client.set_terminated(run, "FINISHED" if result.status == "done" else "FAILED", end_time=0)


def _tags(cell: CellRecord) -> dict[str, str]:
    tags: dict[str, str] = {"batchfree.status": "missing" if cell.result is None else cell.result.status}
    if cell.result is not None and cell.result.reason:
        tags["batchfree.reason"] = cell.result.reason
    if cell.environment is not None:
        tags |= {f"batchfree.{key}": str(value) for key, value in cell.environment.model_dump().items()}
    return tags


def _totals(cell: CellRecord) -> dict[str, float]:
    """The outcome and the cost, under names that differ from those of the epochs."""
    found: dict[str, float | None] = {}
    if cell.result is not None:
        found |= {
            "result_error_percent": cell.result.error_percent,
            "result_initial_error_percent": cell.result.initial_error_percent,
            "result_final_error_percent": cell.result.final_error_percent,
            "result_best_error_percent": cell.result.best_error_percent,
            "result_recomputed_error_percent": cell.result.recomputed_error_percent,
        }
    if cell.cost is not None:
        found |= {
            "seconds": cell.cost.seconds,
            "seconds_per_step": cell.cost.seconds_per_step,
            "peak_memory_bytes": float(cell.cost.peak_memory_bytes),
        }
    return {name: value for name, value in found.items() if value is not None}


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Their loggers tell every step of making the tables."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
