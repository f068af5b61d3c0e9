from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from batchfree.records import CellConfig, read_cell
from batchfree.study import load_study, run_cell
from batchfree.study._training import image_order
from tests.study.quick import cells_of, stop_after


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


def damage(checkpoint: Path, kind: str) -> None:
    content = bytearray(checkpoint.read_bytes())
    if kind == "flipped bit":
        content[-10] ^= 1
    elif kind == "cut short":
        del content[len(content) // 2 :]
    else:
        content[:] = b"not a checkpoint" * 100
    checkpoint.write_bytes(content)


def test_a_network_with_dropout_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    overrides = {"model": "torchvision:mobilenet_v3_small", "image_size": 32, "train_images": 64, "epochs": 1}
    overrides |= {"norm": ["gn+ws"], "seeds": 1, "sgd_batch": 16, "norm_batch": 16, "validation_images": 20}
    (cell,) = cells_of(load_study("norms", overrides=overrides))
    run_cell(cell, tmp_path / "whole")
    torch.rand(7)  # a process that goes on has drawn other numbers before
    run_cell(cell, tmp_path / "stopped", stop_after(2))
    torch.rand(3)
    run_cell(cell, tmp_path / "stopped")
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["flipped bit", "cut short", "overwritten"])
@pytest.mark.parametrize(
    ("damaged", "says"),
    [
        (["checkpoint"], ["the previous checkpoint is tried", "going on from step 1 of epoch 2"]),
        (["checkpoint", "previous-checkpoint"], ["the previous checkpoint is tried", "the run starts anew"]),
    ],
)
def test_damaged_checkpoints_cost_time_and_not_the_numbers(
    cell: CellConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    damaged: list[str],
    says: list[str],
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_cell(cell, whole)
    run_cell(cell, stopped, stop_after(7), checkpoint_seconds=0)  # five steps an epoch
    for name in damaged:
        damage(stopped / f"{name}.safetensors", kind)
    run_cell(cell, stopped)
    printed = capsys.readouterr().out
    assert all(words in printed for words in says)
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (stopped / "result.json").read_bytes() == (whole / "result.json").read_bytes()


def test_lost_metrics_cost_time_and_not_the_numbers(cell: CellConfig, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_cell(cell, whole)
    run_cell(cell, stopped, stop_after(7))
    (stopped / "metrics.jsonl").write_bytes(b"")  # as a power cut leaves it
    run_cell(cell, stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_divergence_is_a_result_with_its_step(cell: CellConfig, tmp_path: Path) -> None:
    result = run_cell(cell.model_copy(update={"learning_rate": 1e30}), tmp_path)
    assert result is not None
    assert result.status == "diverged"
    assert "at step 2 of epoch 1" in result.reason
    assert result.error_percent is None
    assert read_cell(tmp_path).result == result


def test_the_order_is_a_permutation_that_follows_seed_and_epoch_alone() -> None:
    order = image_order(3, 2, 100)
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, image_order(3, 2, 100))
    for other in (image_order(3, 1, 100), image_order(2, 2, 100)):
        assert not torch.equal(order, other)


def test_metrics_hold_nothing_that_changes_from_run_to_run(cell: CellConfig, tmp_path: Path) -> None:
    run_cell(cell, tmp_path)
    keys = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]).keys()
    assert keys == {
        "schema_version",
        "epoch",
        "train_loss",
        "validation_loss",
        "error_percent",
        "recomputed_error_percent",
        "feature_percentiles",
    }
