"""Runs that start from another run's network wait for it, and become rows where it gives none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from batchfree.records import CellResult, read_study
from batchfree.study import Study, run_study
from batchfree.study._engine import Task
from tests.study.forks import ForkedEngine, in_fork
from tests.study.quick import numbers, quick_fine_tuning


def fine_tuning(**overrides: object) -> Study:
    """The pre-trainings of two seeds, and Group Norm with fresh and copied affine of each."""
    return quick_fine_tuning(seeds=2, start=["fresh", "copied"], norm="gn", **overrides)


def refuse_to_start_early(task: Task) -> None:
    """A cell whose pre-training has no result yet crashes."""
    for word in task.words:
        key, _, cell_id = word.partition("=")
        if key == "pretraining" and not (task.log.parent.parent / cell_id / "result.json").exists():
            os._exit(9)


def crash_the_pre_training_of_seed_0(task: Task) -> None:
    if "keeps_weights=True" in task.words and "seed=0" in task.words:
        os._exit(3)


def leave_alone(_: Task) -> None:
    pass


def run(
    study: Study, out: Path, sabotage: Callable[[Task], None] = leave_alone, slots: int | None = 1
) -> list[CellResult]:
    return run_study(study, out, engine=ForkedEngine(slots, sabotage))


@pytest.mark.parametrize("slots", [2, None])
def test_runs_wait_for_their_pre_training_in_every_engine(slots: int | None, tmp_path: Path) -> None:
    results = in_fork(run, fine_tuning(), tmp_path, refuse_to_start_early, slots)
    assert [result.status for result in results] == ["done"] * 6
    assert [result.initial_error_percent is None for result in results] == [True] * 2 + [False] * 4


def test_runs_without_their_pre_training_are_rows_with_its_reason_and_run_with_it_later(tmp_path: Path) -> None:
    study, out = fine_tuning(), tmp_path / "out"
    results = in_fork(run, study, out, crash_the_pre_training_of_seed_0)
    record, cells = read_study(out)
    first = record.cells[0].cell_id
    for result, cell in zip(results, record.cells, strict=True):
        assert result.status == ("failed" if cell.seed == 0 else "done")
        if cell.pretraining == first:
            assert result.reason == f"its pre-training, {first}, has no network: failed: ended with exit code 3"
    assert not any(cell.metrics for cell in cells if cell.config.pretraining == first)
    assert {result.status for result in in_fork(run, study, out)} == {"done"}
    in_fork(run, study, tmp_path / "whole")
    assert numbers(out) == numbers(tmp_path / "whole")


def test_runs_whose_pre_training_diverged_are_skipped_for_good(tmp_path: Path) -> None:
    study = fine_tuning(**{"pretraining.learning_rate": 1e30})
    for _ in range(2):
        results = in_fork(run, study, tmp_path)
        assert [result.status for result in results] == ["diverged"] * 2 + ["skipped"] * 4
        assert "has no network: diverged: the loss became" in results[2].reason
