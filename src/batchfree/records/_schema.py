"""The schema: what each file of a study holds beside the configurations of its cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from batchfree.records._config import CellConfig
from batchfree.records._record import Record

__all__ = [
    "RETRIED",
    "CellRecord",
    "CellResult",
    "Comparison",
    "Cost",
    "Environment",
    "EpochMetrics",
    "FigureKind",
    "ReportSpec",
    "Status",
    "StudyRecord",
    "last_epochs",
    "summarise",
]

#: `done`: all epochs ran. `diverged`: the loss stopped being finite. `failed`: it crashed or was killed. `out of
#: memory`, `timed out`: it hit a limit. `skipped`: its network cannot be built.
Status: TypeAlias = Literal["done", "diverged", "failed", "out of memory", "timed out", "skipped"]
#: Runs that are tried again when the study is run again: another time, or more room, may change the outcome.
RETRIED: tuple[Status, ...] = ("failed", "out of memory", "timed out")

#: The drawing that a study is about; `curves` are drawn for every study.
FigureKind: TypeAlias = Literal["norm-batch", "groups", "bars", "curves", "percentiles", "fine-tuning"]


AxisChoice: TypeAlias = str | int | float | bool


class Comparison(BaseModel):
    """One family of seed-paired differences, corrected together for being many.

    Each arm is compared with the arm that has the values of `reference` and equals it in all other axes. "largest"
    stands for the largest value of an axis, "none" for what has none of it. Arms take part that have the value of
    each axis in `only`, or one of its values; all where it is empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    reference: dict[str, AxisChoice]
    only: dict[str, AxisChoice | tuple[AxisChoice, ...]] = {}


class ReportSpec(BaseModel):
    """What a study's part of the report shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    figure: FigureKind = "bars"
    compare: tuple[Comparison, ...] = ()


class StudyRecord(Record):
    """What was asked for, and the cells that follow from it."""

    study: str
    title: str
    reproduces: str  # papers, figures and tables
    command: str
    settings: dict[str, str]
    axes: tuple[str, ...]  # the fields of CellConfig in which the arms differ; the seed is not one
    cells: tuple[CellConfig, ...]
    report: ReportSpec = ReportSpec()


class EpochMetrics(Record):
    """One line of metrics.jsonl. Losses are cross-entropies in nats."""

    epoch: int  # from 1; 0 is before the first step, of cells that start from a trained network
    train_loss: float | None  # None at epoch 0
    validation_loss: float
    error_percent: float  # of the validation images
    #: Batch Norm alone, in the last epochs: the error with running statistics computed anew from training images.
    recomputed_error_percent: float | None = None
    #: 1st, 20th, 80th and 99th percentile of the last convolution's output on validation images.
    feature_percentiles: tuple[float, float, float, float] | None = None


class CellResult(Record):
    """A cell's outcome. The numbers are `None` unless `status` is "done"."""

    _added_later: ClassVar[tuple[str, ...]] = ("initial_error_percent",)

    cell_id: str
    status: Status
    reason: str = ""  # why it is not done; empty when it is
    error_percent: float | None = None  # median over the last epochs: see last_epochs
    initial_error_percent: float | None = None  # before the first step, of cells that start from a trained network
    final_error_percent: float | None = None
    best_error_percent: float | None = None  # optimistic: chosen on the validation images
    recomputed_error_percent: float | None = None  # median over the same epochs; Batch Norm alone
    validation_loss: float | None = None  # of the last epoch
    num_groups: tuple[int, ...] = ()  # of each norm in forward order; empty for Batch Norm

    @property
    def is_final(self) -> bool:
        """Whether running the study again leaves it as it is."""
        return self.status not in RETRIED


class Environment(Record):
    """What a cell ran on."""

    python: str
    torch: str
    numpy: str
    platform: str
    processor: str
    cpu_capability: str  # the instruction set torch's kernels use
    threads: int
    batchfree: str
    torchvision: str | None = None
    timm: str | None = None  # where it is installed
    cuda: str | None = None  # that torch was built for, where the run is on such a device


class Cost(Record):
    """What a cell cost, over all its starts."""

    seconds: float  # building the network, calibration and recovery included; training and validation
    training_seconds: float
    steps: int
    peak_memory_bytes: int  # of training, above what the process held before it; of the last start

    @property
    def seconds_per_step(self) -> float | None:
        """Of training alone."""
        return self.training_seconds / self.steps if self.steps else None


class CellRecord(BaseModel):
    """All that is on disk of one cell; `result` is `None` while it is not finished."""

    config: CellConfig
    result: CellResult | None
    metrics: tuple[EpochMetrics, ...]
    environment: Environment | None
    cost: Cost | None


def last_epochs(epochs: int) -> int:
    """Over how many of its last epochs the error of a run is the median: five, but no more than the last half.

    Five are those of Wu & He (2018, section 4.1), of a hundred; in a run of six they would nearly reach its start.

    >>> last_epochs(100), last_epochs(6)
    (5, 3)
    """
    return min(5, (epochs + 1) // 2)


def summarise(cell_id: str, metrics: Sequence[EpochMetrics], num_groups: Iterable[int]) -> CellResult:
    """The result of a cell that ran all its epochs.

    Args:
        metrics: one entry per epoch, at least one; perhaps one of epoch 0 before them.
        num_groups: groups of each norm in forward order.
    """
    initial = metrics[0].error_percent if metrics[0].epoch == 0 else None
    errors = [epoch.error_percent for epoch in metrics if epoch.epoch]
    last = last_epochs(len(errors))
    recomputed = [e for epoch in metrics[-last:] if (e := epoch.recomputed_error_percent) is not None]
    return CellResult(
        cell_id=cell_id,
        status="done",
        error_percent=statistics.median(errors[-last:]),
        initial_error_percent=initial,
        final_error_percent=errors[-1],
        best_error_percent=min(errors),
        recomputed_error_percent=statistics.median(recomputed) if recomputed else None,
        validation_loss=metrics[-1].validation_loss,
        num_groups=tuple(num_groups),
    )
