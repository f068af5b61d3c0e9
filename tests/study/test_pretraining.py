"""Runs that start from another run's network wait for it, and become rows where it gives none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

import pytest

from batchfree.records import CellResult, read_study
from batchfree.study import Study, retry_study, run_study
from batchfree.study._engine import Task
from tests.study.forks import ForkedEngine, in_fork
from tests.study.quick import numbers, quick_fine_tuning


def fine_tuning(**overrides: object) -> Study:
    """The pre-trainings of two seeds, and Group Norm with fresh and copied affine of each."""
    return quick_fine_tuning(**{"seeds": 2, "start": ["fresh", "copied"], "norm": "gn", **overrides})


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
def test_runs_wait_for_their_pre_training_whether_slots_are_limited_or_not(slots: int | None, tmp_path: Path) -> None:
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


def retry(out: Path) -> list[CellResult]:
    return retry_study(out, engine=ForkedEngine(1))


def test_a_network_that_is_lost_or_damaged_is_made_again_for_the_runs_that_need_it(tmp_path: Path) -> None:
    in_fork(run, fine_tuning(start="copied"), tmp_path)
    before = numbers(tmp_path)
    networks = {path: path.read_bytes() for path in tmp_path.glob("cells/bn-*/weights.safetensors")}
    lost, damaged = networks
    lost.unlink()
    os.truncate(damaged, damaged.stat().st_size - 1)
    for result in tmp_path.glob("cells/gn-*/result.json"):
        result.unlink()
    assert [result.status for result in in_fork(retry, tmp_path)] == ["done"] * 4
    assert numbers(tmp_path) == before
    assert {path: path.read_bytes() for path in networks} == networks


def lose_every_network(task: Task) -> None:
    """As on a disk that keeps nothing: what a pre-training left is gone when its process has ended."""
    end = os._exit

    def lose_and_end(code: int) -> NoReturn:
        (task.log.parent / "weights.safetensors").unlink(missing_ok=True)
        end(code)

    patch.object(os, "_exit", lose_and_end).start()  # in this cell's process alone


def test_a_pre_training_whose_network_is_lost_again_is_not_made_a_third_time(tmp_path: Path) -> None:
    results = in_fork(run, fine_tuning(seeds=1), tmp_path, lose_every_network)
    assert [result.status for result in results] == ["done", "failed", "failed"]
    assert "has no network: " in results[1].reason
    log = (tmp_path / "cells" / results[0].cell_id / "log.txt").read_text()
    assert log.count("\n$ ") + log.startswith("$ ") == 2
