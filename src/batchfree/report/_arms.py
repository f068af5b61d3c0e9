"""The cells of a study gathered into arms: what was trained one way, over the seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from batchfree.records import BATCH_FREE_NORMS, NORMS, CellConfig, CellRecord, Norm, Status, StudyRecord
from batchfree.report._wording import LABEL_ORDER, AxisValue, arm_label

__all__ = ["LOST", "Arm", "Arms", "CellState", "cell_state", "gather_arms", "usable_error"]

#: What became of a cell; "missing" has no result.json, be it running, waiting or interrupted.
CellState: TypeAlias = Status | Literal["missing"]

#: The states of a run that ended without a result to average.
LOST: tuple[CellState, ...] = ("diverged", "failed", "out of memory", "timed out", "skipped")

#: The axes that only norms with groups have.
GROUP_AXES = ("groups", "channels_per_group")


def cell_state(cell: CellRecord) -> CellState:
    """The status of the cell's result, or "missing" while there is none."""
    return "missing" if cell.result is None else cell.result.status


def usable_error(cell: CellRecord, is_recomputed: bool = False) -> float | None:
    """The cell's error in percent where it may enter a mean: the cell is done and the number is a percentage.

    NaN, or a number outside 0..100, can only come from a damaged file: it is shown as it is and never averaged.

    Args:
        is_recomputed: the error with Batch Norm's running statistics computed anew.
    """
    if cell.result is None or cell.result.status != "done":
        return None
    error = cell.result.recomputed_error_percent if is_recomputed else cell.result.error_percent
    return error if error is not None and 0 <= error <= 100 else None


@dataclass(frozen=True)
class Arm:
    """Cells that differ in nothing but the seed.

    With `is_recomputed` they are the same runs as those of another arm, evaluated with Batch Norm's running statistics
    computed anew from training images.
    """

    axes: tuple[str, ...]  # of the study
    cells: tuple[CellRecord, ...]  # at least one
    is_recomputed: bool = False

    @property
    def config(self) -> CellConfig:
        """Of the first cell; all share it but for the seed."""
        return self.cells[0].config

    @property
    def norm(self) -> Norm:
        """What it normalises with."""
        return self.config.norm

    @property
    def norm_batch(self) -> int | None:
        """`None` where one run stands for every norm batch."""
        return self.config.norm_batch

    @property
    def label(self) -> str:
        """What it is, in the axes of the study."""
        return self.label_without()

    def label_without(self, *axes: str) -> str:
        """The label where `axes` are said elsewhere, for instance in a panel's title."""
        kept = tuple(axis for axis in self.axes if axis not in axes)
        return arm_label(self.config, kept, is_recomputed=self.is_recomputed)

    def value(self, axis: str) -> AxisValue:
        """Its value in a field of `CellConfig`; `None` where there is no such field."""
        return getattr(self.config, axis, None)

    def sees(self, axis: str) -> bool:
        """Whether the axis means anything to it: the norm batch to Batch Norm, groups to Group Norm."""
        if axis == "norm_batch":
            return self.norm_batch is not None
        return axis not in GROUP_AXES or self.norm in ("gn", "gn+ws")

    def agrees_with(self, other: Arm, axes: Sequence[str]) -> bool:
        """Whether both are the same in each of `axes` that means anything to both."""
        return all(self.value(a) == other.value(a) for a in axes if self.sees(a) and other.sees(a))

    @property
    def errors(self) -> dict[int, float]:
        """Error in percent by seed, of the cells that have one."""
        found = {cell.config.seed: usable_error(cell, self.is_recomputed) for cell in self.cells}
        return {seed: error for seed, error in found.items() if error is not None}

    @property
    def mean_error(self) -> float | None:
        """Mean over the seeds that have an error; `None` where none has."""
        errors = self.errors.values()
        return sum(errors) / len(errors) if errors else None

    @property
    def mean_initial_error(self) -> float | None:
        """The same before the first step; `None` where no run started from a trained network."""
        results = [cell.result for cell in self.cells if usable_error(cell, self.is_recomputed) is not None]
        errors = [result.initial_error_percent for result in results if result is not None]
        known = [error for error in errors if error is not None and 0 <= error <= 100]
        return sum(known) / len(known) if known and not self.is_recomputed else None

    @property
    def milliseconds_per_step(self) -> float | None:
        """Of training; the median over the cells."""
        seconds = [s for cell in self.cells if cell.cost is not None and (s := cell.cost.seconds_per_step) is not None]
        return 1000 * statistics.median(seconds) if seconds else None

    @property
    def peak_memory_mib(self) -> float | None:
        """Of the process, in 2^20 bytes; the median over the cells."""
        peaks = [cell.cost.peak_memory_bytes for cell in self.cells if cell.cost is not None]
        return statistics.median(peaks) / 2**20 if peaks else None

    def seeds(self, *states: CellState) -> tuple[int, ...]:
        """The seeds whose cell is in one of `states`."""
        return tuple(cell.config.seed for cell in self.cells if cell_state(cell) in states)


@dataclass(frozen=True)
class Arms:
    """Every arm of a study: by its axes in the order of the labels, each norm from the largest norm batch on."""

    all: tuple[Arm, ...]
    axes: tuple[str, ...]

    @property
    def trained(self) -> tuple[Arm, ...]:
        """The arms that are training runs of their own: all but those with statistics recomputed."""
        return tuple(arm for arm in self.all if not arm.is_recomputed)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms of the study, in the order of `records.NORMS`."""
        found = {arm.norm for arm in self.all}
        return tuple(norm for norm in NORMS if norm in found)

    @property
    def norm_batches(self) -> tuple[int, ...]:
        """Every norm batch of the study, largest first."""
        return tuple(sorted({arm.norm_batch for arm in self.all if arm.norm_batch is not None}, reverse=True))

    @property
    def has_any_norm_batch(self) -> bool:
        """Whether some runs stand for every norm batch."""
        return any(arm.norm in BATCH_FREE_NORMS and arm.norm_batch is None for arm in self.all)

    @cached_property
    def tied(self) -> tuple[str, ...]:
        """Those of SGD batch and learning rate that change with the norm batch, as on the paper's eight GPUs."""
        other = tuple(axis for axis in self.axes if axis != "norm_batch")
        seeing = [arm for arm in self.all if arm.sees("norm_batch")]
        return tuple(
            field
            for field in ("sgd_batch", "learning_rate")
            if field not in self.axes
            and any(a.value(field) != b.value(field) for a in seeing for b in seeing if a.agrees_with(b, other))
        )

    @property
    def batch_norm(self) -> dict[int, Arm]:
        """Batch Norm's arms by norm batch, largest first; empty where the study has none."""
        return {arm.norm_batch: arm for arm in self.trained if arm.norm == "bn" and arm.norm_batch is not None}

    def cost_reference(self, arm: Arm) -> Arm | None:
        """Batch Norm under the same settings, at the largest norm batch where `arm` stands for every one."""
        other = tuple(axis for axis in self.axes if axis not in ("norm", "start"))  # no start makes steps dearer
        return next((bn for bn in self.trained if bn.norm == "bn" and bn.agrees_with(arm, other)), None)


def gather_arms(study: StudyRecord, cells: Sequence[CellRecord]) -> Arms:
    """The cells of a study as arms.

    Args:
        study, cells: as `records.read_study` gives them.

    Returns:
        One arm per combination of the study's axes that was asked for, without the runs that others start from, which
        have another task; and one more, with the statistics recomputed,
        for each whose cells were evaluated that way too.
    """
    axes = tuple(dict.fromkeys(axis for axis in study.axes if axis in CellConfig.model_fields))
    grouped: dict[tuple[AxisValue, ...], list[CellRecord]] = {}
    for cell in cells:
        if cell.config.keeps_weights:
            continue
        # The norm even where it is no axis: colours and rules follow it.
        key = (cell.config.norm, *(getattr(cell.config, axis) for axis in axes))
        grouped.setdefault(key, []).append(cell)
    found = [Arm(axes, tuple(members)) for members in grouped.values()]
    found += [
        Arm(axes, arm.cells, is_recomputed=True)
        for arm in found
        if any(usable_error(cell, is_recomputed=True) is not None for cell in arm.cells)
    ]
    return Arms(tuple(_sorted(found, axes)), axes)


def _sorted(arms: Sequence[Arm], axes: Sequence[str]) -> list[Arm]:
    named = [axis for axis in LABEL_ORDER if axis in axes]
    order = [axis for axis in [*named, *axes] if axis not in ("norm", "norm_batch")]
    first = [axis for axis in order if axis not in GROUP_AXES]
    appearance = {axis: list(dict.fromkeys(arm.value(axis) for arm in arms)) for axis in order}

    def key(arm: Arm) -> tuple[int, ...]:
        def place(axis: str) -> int:
            return appearance[axis].index(arm.value(axis))

        return (
            *map(place, first),
            NORMS.index(arm.norm),
            arm.is_recomputed,
            *(place(axis) for axis in GROUP_AXES if axis in axes),
            -(arm.norm_batch or 0),
        )

    return sorted(arms, key=key)
