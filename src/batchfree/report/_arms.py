"""The cells of a study gathered into arms: one norm at one norm batch, over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from batchfree.records import NORMS, CellRecord, Norm, Protocol

__all__ = ["LOST", "Arm", "Arms", "CellState", "cell_state", "gather_arms", "usable_error"]

#: What became of a cell; "missing" has no result.json, be it running, waiting or interrupted.
CellState: TypeAlias = Literal["done", "diverged", "failed", "missing"]

#: The states of a run that ended without a result to average.
LOST: tuple[CellState, ...] = ("diverged", "failed")


def cell_state(cell: CellRecord) -> CellState:
    """The status of the cell's result, or "missing" while there is none."""
    return "missing" if cell.result is None else cell.result.status


def usable_error(cell: CellRecord) -> float | None:
    """The cell's error in percent where it may enter a mean: the cell is done and the number is a percentage.

    NaN, or a number outside 0..100, can only come from a damaged file: it is shown as it is and never averaged.
    """
    if cell.result is None or cell.result.status != "done" or cell.result.error_percent is None:
        return None
    error = cell.result.error_percent
    return error if 0 <= error <= 100 else None


@dataclass(frozen=True)
class Arm:
    """One norm at one norm batch, over the seeds; `norm_batch` is `None` where one run stands for every norm batch."""

    norm: Norm
    norm_batch: int | None
    cells: tuple[CellRecord, ...]

    @property
    def errors(self) -> dict[int, float]:
        """Error in percent by seed, of the cells that have one."""
        found = {cell.config.seed: usable_error(cell) for cell in self.cells}
        return {seed: error for seed, error in found.items() if error is not None}

    @property
    def mean_error(self) -> float | None:
        """Mean over the seeds that have an error; `None` where none has."""
        errors = self.errors.values()
        return sum(errors) / len(errors) if errors else None

    def seeds(self, *states: CellState) -> tuple[int, ...]:
        """The seeds whose cell is in one of `states`."""
        return tuple(cell.config.seed for cell in self.cells if cell_state(cell) in states)


@dataclass(frozen=True)
class Arms:
    """Every arm of a study, Batch Norm first, each norm from the largest norm batch to the smallest."""

    all: tuple[Arm, ...]

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms of the study, in the order of `records.NORMS`."""
        return tuple(dict.fromkeys(arm.norm for arm in self.all))

    @property
    def norm_batches(self) -> tuple[int, ...]:
        """Every norm batch of the study, largest first."""
        return tuple(sorted({arm.norm_batch for arm in self.all if arm.norm_batch is not None}, reverse=True))

    @property
    def protocol(self) -> Protocol:
        """How the cells were trained; a study has one protocol."""
        return self.all[0].cells[0].config.protocol if self.all else "fixed-sgd"

    @property
    def batch_norm(self) -> dict[int, Arm]:
        """Batch Norm's arms by norm batch, largest first; empty where the study has none."""
        return {arm.norm_batch: arm for arm in self.of("bn") if arm.norm_batch is not None}

    def of(self, norm: Norm) -> tuple[Arm, ...]:
        """The arms of one norm."""
        return tuple(arm for arm in self.all if arm.norm == norm)

    def at(self, norm: Norm, norm_batch: int) -> Arm | None:
        """The arm that tells what `norm` does at `norm_batch`: that very one, or the one that stands for all."""
        return next((arm for arm in self.of(norm) if arm.norm_batch in (norm_batch, None)), None)


def gather_arms(cells: Sequence[CellRecord]) -> Arms:
    """The cells of a study as arms.

    Args:
        cells: as `records.read_study` gives them.
    """
    grouped: dict[tuple[Norm, int | None], list[CellRecord]] = {}
    for cell in cells:
        grouped.setdefault((cell.config.norm, cell.config.norm_batch), []).append(cell)
    arms = [Arm(norm, norm_batch, tuple(members)) for (norm, norm_batch), members in grouped.items()]
    return Arms(tuple(sorted(arms, key=lambda arm: (NORMS.index(arm.norm), -(arm.norm_batch or 0)))))
