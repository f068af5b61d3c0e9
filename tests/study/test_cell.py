from __future__ import annotations

import os
import threading
from pathlib import Path

import filelock
import pytest
import torch

from batchfree.errors import DataError, StudyError
from batchfree.records import CellConfig, CellResult, read_cell
from batchfree.study import run_cell
from batchfree.study._data import load_data
from tests.study.quick import stop_after


def test_a_finished_cell_has_all_its_files_and_learned_something(cell: CellConfig, tmp_path: Path) -> None:
    data = load_data("digits").take(640)
    larger = {"train_images": 640, "data_fingerprint": data.fingerprint(), "epochs": 6}
    result = run_cell(cell.model_copy(update=larger), tmp_path)
    assert result is not None
    record = read_cell(tmp_path)
    assert record.result == result
    assert result.status == "done"
    assert [epoch.epoch for epoch in record.metrics] == [1, 2, 3, 4, 5, 6]
    errors = [epoch.error_percent for epoch in record.metrics]
    assert result.error_percent == sorted(errors[-3:])[1]  # of the last half
    assert result.final_error_percent == errors[-1]
    assert result.best_error_percent == min(errors)
    assert errors[-1] < 20  # chance is 90
    losses = [epoch.train_loss for epoch in record.metrics if epoch.train_loss is not None]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert record.environment is not None
    assert record.environment.threads == 1
    assert record.cost is not None
    assert record.cost.steps == 120
    assert 0 < record.cost.training_seconds < record.cost.seconds
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_finished_cell_is_not_run_again_and_a_failed_one_is(cell: CellConfig, tmp_path: Path) -> None:
    result = run_cell(cell, tmp_path)
    written = (tmp_path / "result.json").stat().st_mtime_ns
    assert run_cell(cell, tmp_path) == result
    assert (tmp_path / "result.json").stat().st_mtime_ns == written
    failed = CellResult(cell_id=cell.cell_id, status="failed", reason="killed by SIGKILL")
    (tmp_path / "result.json").write_text(failed.model_dump_json())
    assert run_cell(cell, tmp_path) == result


def test_a_folder_holds_one_cell(cell: CellConfig, tmp_path: Path) -> None:
    run_cell(cell, tmp_path)
    with pytest.raises(StudyError, match="belongs to the cell"):
        run_cell(cell.model_copy(update={"seed": 5}), tmp_path)


@pytest.mark.parametrize("only_the_previous", [False, True])
def test_a_checkpoint_of_another_torch_is_refused(cell: CellConfig, tmp_path: Path, only_the_previous: bool) -> None:
    run_cell(cell, tmp_path, stop_after(3))
    if only_the_previous:  # as a kill while a checkpoint is written leaves it
        os.replace(tmp_path / "checkpoint.safetensors", tmp_path / "previous-checkpoint.safetensors")
    environment = (tmp_path / "environment.json").read_text()
    (tmp_path / "environment.json").write_text(environment.replace(torch.__version__, "2.0.0"))
    with pytest.raises(StudyError, match=r"begun with torch 2\.0\.0.* Install torch 2\.0\.0, or begin it anew"):
        run_cell(cell, tmp_path)


def test_the_callers_process_is_left_as_it_was(cell: CellConfig, tmp_path: Path) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    run_cell(cell.model_copy(update={"threads": 2 if before[1] == 1 else 1}), tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[1:]


def test_two_processes_do_not_write_one_cell(cell: CellConfig, tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(StudyError, match="another process is at work"):
        run_cell(cell, tmp_path)


def test_a_cell_may_wait_for_another_process_to_leave(cell: CellConfig, tmp_path: Path) -> None:
    lock = filelock.FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    leaving = threading.Timer(0.2, lock.release)
    leaving.start()
    result = run_cell(cell, tmp_path, lock_seconds=60)
    leaving.join()
    assert result is not None
    assert result.status == "done"


def test_changed_data_is_refused(cell: CellConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fingerprint"):
        run_cell(cell.model_copy(update={"data_fingerprint": "0" * 64}), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []
