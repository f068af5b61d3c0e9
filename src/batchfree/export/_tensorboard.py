"""A study as TensorBoard event files: one run per cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from batchfree.errors import require
from batchfree.records import CellRecord, EpochMetrics, StudyRecord

__all__ = ["scalars", "write_tensorboard"]

#: TensorBoard knows its files by "tfevents"; the usual names hold the host and the time.
FILE_NAME = "events.out.tfevents.0.batchfree"
PERCENTILES = (1, 20, 80, 99)


def write_tensorboard(study: StudyRecord, cells: Sequence[CellRecord], folder: Path, place: Path) -> None:
    """`<cell id>/events.out.tfevents...` with a scalar per number and epoch, and the configuration as text.

    Show them with `tensorboard --logdir` of the folder. The step is the epoch; records hold no times, so the wall time
    is 0. TensorFlow is not needed.
    """
    require("tensorboard", "export")
    records = require("tensorboard.summary.writer.record_writer", "export")
    events = require("tensorboard.compat.proto.event_pb2", "export")
    summaries = require("tensorboard.compat.proto.summary_pb2", "export")
    for cell in cells:
        run = folder / cell.config.cell_id
        run.mkdir()
        with open(run / FILE_NAME, "wb") as file:
            writer = records.RecordWriter(file)
            writer.write(events.Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
            text = summaries.Summary(value=[_configuration(cell, summaries)])
            writer.write(events.Event(wall_time=0.0, step=0, summary=text).SerializeToString())
            for metrics in cell.metrics:
                values = [
                    summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(metrics).items()
                ]
                summary = summaries.Summary(value=values)
                writer.write(events.Event(wall_time=0.0, step=metrics.epoch, summary=summary).SerializeToString())


def scalars(metrics: EpochMetrics) -> dict[str, float]:
    """The numbers of an epoch that it has."""
    found = {
        "validation_loss": metrics.validation_loss,
        "error_percent": metrics.error_percent,
    }
    if metrics.train_loss is not None:
        found["train_loss"] = metrics.train_loss
    if metrics.recomputed_error_percent is not None:
        found["recomputed_error_percent"] = metrics.recomputed_error_percent
    if metrics.feature_percentiles is not None:
        values = zip(PERCENTILES, metrics.feature_percentiles, strict=True)
        found |= {f"feature_percentile_{percentile}": value for percentile, value in values}
    return found


def _configuration(cell: CellRecord, summaries: ModuleType) -> object:
    """Configuration and outcome as a text summary, which TensorBoard shows under "Text"."""
    tensors = require("tensorboard.compat.proto.tensor_pb2", "export")
    types = require("tensorboard.compat.proto.types_pb2", "export")
    metadata = require("tensorboard.plugins.text.metadata", "export")
    lines = [f"    {assignment}" for assignment in cell.config.assignments()]
    outcome = "missing" if cell.result is None else f"{cell.result.status} {cell.result.reason}".strip()
    text = "\n".join([f"    status={outcome}", *lines])
    return summaries.Summary.Value(
        tag="configuration",
        metadata=metadata.create_summary_metadata(display_name="configuration", description=""),
        tensor=tensors.TensorProto(dtype=types.DT_STRING, string_val=[text.encode()]),
    )
