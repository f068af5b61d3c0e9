from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
import torch

from batchfree.errors import DataError, StudyError
from batchfree.records import CellConfig, CellResult, read_cell
from batchfree.study import _cell as cell_module
from batchfree.study import run_cell
from batchfree.study._data import load_data


def stop_after(steps: int) -> Callable[[], bool]:
    calls = iter(range(1, 10**6))
    return lambda: next(calls) >= steps


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
    assert result.error_percent == sorted(errors[-5:])[2]
    assert result.final_error_percent == errors[-1]
    assert result.best_error_percent == min(errors)
    assert errors[-1] < 20  # chance is 90
    assert record.metrics[-1].train_loss < record.metrics[0].train_loss
    assert record.environment is not None
    assert record.environment.threads == 1
    assert record.cost is not None
    assert record.cost.steps == 120
    assert record.cost.peak_memory_bytes > 10**7
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("steps", [1, 5, 7])
def test_a_cell_stopped_anywhere_ends_with_the_same_bytes(cell: CellConfig, tmp_path: Path, steps: int) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_cell(cell, whole)
    assert run_cell(cell, stopped, stop_after(steps)) is None
    assert not (stopped / "result.json").exists()
    assert (stopped / "checkpoint.safetensors").exists()
    # as after a kill: an epoch that was logged after the checkpoint, and half a line
    with open(stopped / "metrics.jsonl", "a") as file:
        file.write('{"schema_version":1,"epoch":9}\n{"sch')
    run_cell(cell, stopped)
    for name in ("result.json", "metrics.jsonl", "config.json"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_a_damaged_checkpoint_costs_time_and_not_the_numbers(
    cell: CellConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_cell(cell, whole)
    run_cell(cell, stopped, stop_after(7))
    checkpoint = stopped / "checkpoint.safetensors"
    content = bytearray(checkpoint.read_bytes())
    content[-10] ^= 1
    checkpoint.write_bytes(content)
    run_cell(cell, stopped)
    assert "does not match its SHA-256" in capsys.readouterr().out
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_finished_cell_is_not_run_again_and_a_failed_one_is(cell: CellConfig, tmp_path: Path) -> None:
    result = run_cell(cell, tmp_path)
    written = (tmp_path / "result.json").stat().st_mtime_ns
    assert run_cell(cell, tmp_path) == result
    assert (tmp_path / "result.json").stat().st_mtime_ns == written
    failed = CellResult(cell_id=cell.cell_id, status="failed", reason="killed by SIGKILL")
    (tmp_path / "result.json").write_text(failed.model_dump_json())
    assert run_cell(cell, tmp_path) == result


def test_divergence_is_a_result_with_its_step(cell: CellConfig, tmp_path: Path) -> None:
    result = run_cell(cell.model_copy(update={"learning_rate": 1e30}), tmp_path)
    assert result is not None
    assert result.status == "diverged"
    assert "epoch 1" in result.reason
    assert result.error_percent is None
    assert read_cell(tmp_path).result == result


def test_a_folder_holds_one_cell(cell: CellConfig, tmp_path: Path) -> None:
    run_cell(cell, tmp_path)
    with pytest.raises(StudyError, match="belongs to the cell"):
        run_cell(cell.model_copy(update={"seed": 5}), tmp_path)


def test_lost_metrics_cost_time_and_not_the_numbers(cell: CellConfig, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_cell(cell, whole)
    run_cell(cell, stopped, stop_after(7))
    (stopped / "metrics.jsonl").write_bytes(b"")  # as a power cut leaves it
    run_cell(cell, stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_the_callers_process_is_left_as_it_was(cell: CellConfig, tmp_path: Path) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    run_cell(cell.model_copy(update={"threads": 2 if before[1] == 1 else 1}), tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before[1:]


def test_two_processes_do_not_write_one_cell(cell: CellConfig, tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(StudyError, match="another process"):
        run_cell(cell, tmp_path)


def test_changed_data_is_refused(cell: CellConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fingerprint"):
        run_cell(cell.model_copy(update={"data_fingerprint": "0" * 64}), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []


def test_the_order_is_a_permutation_that_follows_seed_and_epoch_alone() -> None:
    order = cell_module._order(3, 2, 100)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, cell_module._order(3, 2, 100))
    for other in (cell_module._order(3, 1, 100), cell_module._order(2, 2, 100)):
        assert not torch.equal(order, other)


def test_schedules_by_hand(cell: CellConfig) -> None:
    cosine = cell.model_copy(update={"schedule": "cosine", "learning_rate": 0.2})
    assert cell_module._learning_rate(cosine, 0, 100) == pytest.approx(0.2)
    assert cell_module._learning_rate(cosine, 50, 100) == pytest.approx(0.1)
    assert cell_module._learning_rate(cosine, 75, 100) == pytest.approx(0.2 * 0.1464466)
    steps = cell.model_copy(update={"schedule": "step", "learning_rate": 0.2})
    rates = [cell_module._learning_rate(steps, step, 100) for step in (0, 29, 30, 59, 60, 89, 90, 99)]
    assert rates == pytest.approx([0.2, 0.2, 0.02, 0.02, 2e-3, 2e-3, 2e-4, 2e-4])


def test_metrics_hold_nothing_that_changes_from_run_to_run(cell: CellConfig, tmp_path: Path) -> None:
    run_cell(cell, tmp_path)
    keys = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]).keys()
    assert keys == {"schema_version", "epoch", "train_loss", "validation_loss", "error_percent"}
