"""Small studies on disk, written through the public records, with whatever went wrong in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchfree.records import (
    CellConfig,
    CellRecord,
    CellResult,
    Cost,
    Environment,
    EpochMetrics,
    Norm,
    Protocol,
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
)


def config(
    norm: Norm, norm_batch: int | None, seed: int, *, data: str = "digits", protocol: Protocol = "fixed-sgd"
) -> CellConfig:
    """One cell; under protocol "paper" SGD batch and learning rate follow the norm batch."""
    is_paper = protocol == "paper" and norm_batch is not None
    return CellConfig(
        study="norm-batch",
        data=data,
        data_fingerprint="ab12" * 16,
        model="resnet8",
        norm=norm,
        norm_batch=norm_batch,
        sgd_batch=8 * norm_batch if is_paper and norm_batch else 32,
        groups="auto",
        protocol=protocol,
        learning_rate=0.1 * norm_batch / 32 if is_paper and norm_batch else 0.1,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="cosine",
        epochs=3,
        train_images=1078,
        seed=seed,
        threads=1,
    )


def epochs(last: float, start: float = 60.0, count: int = 3) -> list[EpochMetrics]:
    """Epochs whose error falls from `start` to `last` in a straight line."""
    step = (last - start) / max(count - 1, 1)
    return [
        EpochMetrics(epoch=e + 1, train_loss=0.1, validation_loss=0.2, error_percent=start + step * e)
        for e in range(count)
    ]


def done(cell: CellConfig, error: float, loss: float = 0.25) -> CellResult:
    """A finished cell whose three error figures differ, so that no column can stand for another."""
    return CellResult(
        cell_id=cell.cell_id,
        status="done",
        error_percent=error,
        final_error_percent=error + 0.125,
        best_error_percent=error - 0.25,
        validation_loss=loss,
        num_groups=() if cell.norm == "bn" else (1, 1, 2, 2, 4),
    )


class SampleStudy:
    """A study that is put together cell by cell and then written."""

    def __init__(self, *, data: str = "digits", protocol: Protocol = "fixed-sgd") -> None:
        self.data = data
        self.protocol: Protocol = protocol
        self.cells: list[CellConfig] = []
        self.results: dict[str, CellResult] = {}
        self.metrics: dict[str, Sequence[EpochMetrics]] = {}

    def add(self, norm: Norm, norm_batch: int | None, errors: Mapping[int, float | str]) -> SampleStudy:
        """Adds an arm: by seed its error, or "missing", or "diverged: why" or "failed: why"."""
        for seed, outcome in errors.items():
            cell = config(norm, norm_batch, seed, data=self.data, protocol=self.protocol)
            self.cells.append(cell)
            if isinstance(outcome, float | int):
                self.results[cell.cell_id] = done(cell, outcome)
                self.metrics[cell.cell_id] = epochs(outcome if 0 <= outcome <= 100 else math.nan)
            elif outcome != "missing":
                status, _, reason = outcome.partition(": ")
                assert status in ("diverged", "failed")
                self.results[cell.cell_id] = CellResult(
                    cell_id=cell.cell_id, status="failed" if status == "failed" else "diverged", reason=reason
                )
                self.metrics[cell.cell_id] = epochs(70.0, count=1)
        return self

    def write(self, out: Path) -> Path:
        """Writes the study's files into `out`."""
        out.mkdir(parents=True, exist_ok=True)
        study = StudyRecord(
            study="norm-batch",
            command=f"batchfree study norm-batch --data {self.data} --out {out}",
            settings={"data": self.data, "model": "resnet8", "seeds": "3"},
            cells=tuple(self.cells),
        )
        write_record(out / "study.json", study)
        for cell in self.cells:
            if cell.cell_id not in self.results:
                continue
            folder = out / "cells" / cell.cell_id
            folder.mkdir(parents=True)
            write_record(folder / "config.json", cell)
            write_record(folder / "environment.json", ENVIRONMENT)
            lines = [metrics.model_dump_json() + "\n" for metrics in self.metrics[cell.cell_id]]
            (folder / "metrics.jsonl").write_text("".join(lines))
            write_record(folder / "cost.json", Cost(seconds=12.5, steps=100, peak_memory_bytes=1 << 20))
            write_record(folder / "result.json", self.results[cell.cell_id])
        return out

    def read(self, out: Path) -> list[CellRecord]:
        """The cells as a reader gets them back from `out`."""
        return read_study(self.write(out))[1]
