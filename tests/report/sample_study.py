"""Small studies on disk, written through the public records, with whatever went wrong in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from batchfree.records import (
    CellConfig,
    CellRecord,
    CellResult,
    Comparison,
    Cost,
    Environment,
    EpochMetrics,
    FigureKind,
    Norm,
    ReportSpec,
    Status,
    StudyRecord,
    read_study,
    write_record,
)

ENVIRONMENT = Environment(
    python="3.11.7",
    torch="2.14.1",
    numpy="2.4.6",
    platform="Linux-6.1-x86_64",
    processor="Some Processor",
    cpu_capability="AVX512",
    threads=1,
    batchfree="0.1.0",
    torchvision="0.29.1",
)

#: As in the built-in study norm-batch.
FROM_BATCH_NORM = Comparison(title="Differences from Batch Norm", reference={"norm": "bn"})
AGAINST_ITSELF = Comparison(title="Batch Norm against itself", reference={"norm_batch": "largest"}, only={"norm": "bn"})


def config(norm: Norm, norm_batch: int | None, seed: int, *, protocol: str = "fixed-sgd", **fields: Any) -> CellConfig:
    """One cell; under protocol "paper" SGD batch and learning rate follow the norm batch."""
    if protocol == "paper" and norm_batch is not None:
        fields = {"sgd_batch": 8 * norm_batch, "learning_rate": 0.1 * norm_batch / 32, **fields}
    values: dict[str, Any] = {
        "study": "norm-batch",
        "data": "digits",
        "data_fingerprint": "ab12" * 16,
        "model": "resnet8",
        "norm": norm,
        "norm_batch": norm_batch,
        "sgd_batch": 32,
        "protocol": protocol,
        "learning_rate": 0.1,
        "epochs": 3,
        "train_images": 1078,
        "validation_images": 359,
        "seed": seed,
    }
    return CellConfig(**(values | fields))


def epochs(last: float, start: float = 60.0, count: int = 3) -> list[EpochMetrics]:
    """Epochs whose error falls from `start` to `last` in a straight line."""
    step = (last - start) / max(count - 1, 1)
    return [
        EpochMetrics(epoch=e + 1, train_loss=0.1, validation_loss=0.2, error_percent=start + step * e)
        for e in range(count)
    ]


def done(cell: CellConfig, error: float, loss: float = 0.25, recomputed: float | None = None) -> CellResult:
    """A finished cell whose three error figures differ, so that no column can stand for another."""
    return CellResult(
        cell_id=cell.cell_id,
        status="done",
        error_percent=error,
        final_error_percent=error + 0.125,
        best_error_percent=error - 0.25,
        recomputed_error_percent=recomputed,
        validation_loss=loss,
        num_groups=(1, 1, 2, 2, 4) if cell.norm in ("gn", "gn+ws", "ln", "in") else (),
    )


class SampleStudy:
    """A study that is put together cell by cell and then written."""

    def __init__(
        self,
        *,
        data: str = "digits",
        protocol: str = "fixed-sgd",
        name: str = "norm-batch",
        title: str = "Which normalisation at which norm batch?",
        axes: tuple[str, ...] = ("norm", "norm_batch"),
        figure: FigureKind = "norm-batch",
        compare: tuple[Comparison, ...] = (FROM_BATCH_NORM, AGAINST_ITSELF),
    ) -> None:
        self.shared: dict[str, Any] = {"study": name, "data": data, "protocol": protocol}
        self.title = title
        self.axes = axes
        self.report = ReportSpec(figure=figure, compare=compare)
        self.cells: list[CellConfig] = []
        self.results: dict[str, CellResult] = {}
        self.metrics: dict[str, Sequence[EpochMetrics]] = {}
        self.costs: dict[str, Cost] = {}

    def add(
        self,
        norm: Norm,
        norm_batch: int | None,
        errors: Mapping[int, float | str],
        *,
        recomputed: Mapping[int, float] | None = None,
        cost: Cost | None = None,
        **fields: Any,
    ) -> SampleStudy:
        """Adds an arm: by seed its error, or "missing", or a status and a reason, as in "diverged: why"."""
        for seed, outcome in errors.items():
            cell = config(norm, norm_batch, seed, **(self.shared | fields))
            self.cells.append(cell)
            self.costs[cell.cell_id] = cost or Cost(
                seconds=12.5, training_seconds=10.0, steps=100, peak_memory_bytes=1 << 20
            )
            if isinstance(outcome, float | int):
                self.results[cell.cell_id] = done(cell, outcome, recomputed=(recomputed or {}).get(seed))
                self.metrics[cell.cell_id] = epochs(outcome if 0 <= outcome <= 100 else math.nan)
            elif outcome != "missing":
                status, _, reason = outcome.partition(": ")
                (known,) = (each for each in get_args(Status) if each == status)
                self.results[cell.cell_id] = CellResult(cell_id=cell.cell_id, status=known, reason=reason)
                self.metrics[cell.cell_id] = epochs(70.0, count=1)
        return self

    def record(self, out: Path) -> StudyRecord:
        """What stands in study.json."""
        name = self.shared["study"]
        return StudyRecord(
            study=name,
            title=self.title,
            reproduces="Wu & He 2018",
            command=f"batchfree study {name} --data {self.shared['data']} --out {out}",
            settings={"data": self.shared["data"], "model": "resnet8", "seeds": "3"},
            axes=self.axes,
            cells=tuple(self.cells),
            report=self.report,
        )

    def write(self, out: Path) -> Path:
        """Writes the study's files into `out`."""
        out.mkdir(parents=True, exist_ok=True)
        write_record(out / "study.json", self.record(out))
        for cell in self.cells:
            if cell.cell_id not in self.results:
                continue
            folder = out / "cells" / cell.cell_id
            folder.mkdir(parents=True)
            write_record(folder / "config.json", cell)
            write_record(folder / "environment.json", ENVIRONMENT)
            lines = [metrics.model_dump_json() + "\n" for metrics in self.metrics[cell.cell_id]]
            (folder / "metrics.jsonl").write_text("".join(lines))
            write_record(folder / "cost.json", self.costs[cell.cell_id])
            write_record(folder / "result.json", self.results[cell.cell_id])
        return out

    def read(self, out: Path) -> tuple[StudyRecord, list[CellRecord]]:
        """The study and its cells as a reader gets them back from `out`."""
        return read_study(self.write(out))


def whole_study() -> SampleStudy:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 10.2, 2: 10.1}).add("bn", 2, {0: 13.0, 1: 13.3, 2: 13.0})
    return study.add("gn", None, {0: 9.9, 1: 10.4, 2: 10.1}).add("ln", None, {0: 12.0, 1: 12.3, 2: 12.1})


def ragged_study() -> SampleStudy:
    study = SampleStudy().add("bn", 32, {0: 10.0, 1: 10.2, 2: 10.1})
    study.add("bn", 1, {0: "diverged: loss is nan at step 3", 1: 30.0, 2: "missing"})
    return study.add("gn", None, {0: 9.9, 1: 10.5, 2: "failed: killed by signal 9"})
