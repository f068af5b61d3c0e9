from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from batchfree.errors import StudyError
from batchfree.records import CellConfig, read_metrics, write_record
from batchfree.study import PARENT_VARIABLE, Progress, is_parent_gone, load_study, run_cell, run_study
from batchfree.study._workers import Workers
from tests.closeness import assert_close
from tests.study import sharing
from tests.study.processes import cell_processes
from tests.study.quick import cells_of, quick_fine_tuning

WORKERS = 3  # the order in which three numbers are added can change; that of two cannot


def cells(workers: int) -> dict[str, CellConfig]:
    """Eighteen steps of 24 images: Batch Norm at norm batch 4, also with mixup, and the norm that sees no batch.

    Mixup also of images that are augmented, in which workers may not differ either.
    """
    overrides = {"norm": ["bn", "gn+ws"], "norm_batch": [4], "sgd_batch": 24, "train_images": 160, "epochs": 3}
    study = load_study("norm-batch", overrides={**overrides, "seeds": 1, "workers": workers})
    plain: dict[str, CellConfig] = {cell.norm: cell for cell in study.cells(study.load())}
    mixed = plain["bn"].model_copy(update={"mixup": 0.5})
    return {**plain, "mixed": mixed, "augmented": mixed.model_copy(update={"augment": "crop-flip"})}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `WORKERS` processes of torchrun leave in `many`, and a single one in `one`."""
    folder = tmp_path_factory.mktemp("shared")
    for name, count in (("one", 1), ("many", WORKERS)):
        (folder / name).mkdir()
        for norm, cell in cells(count).items():
            write_record(folder / name / f"{norm}.json", cell)
    sharing.train_all(folder / "one", Workers(1))
    words = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={WORKERS}"]
    words += ["--module", "tests.study.sharing", str(folder / "many"), str(WORKERS)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    done = subprocess.run(
        [sys.executable, "-m", *words], env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("norm", ["bn", "gn+ws", "mixed", "augmented"])
def test_several_workers_find_what_one_finds(shared: Path, norm: str) -> None:
    one, many = (read_metrics(shared / name / norm / "whole" / "metrics.jsonl") for name in ("one", "many"))
    assert [epoch.error_percent for epoch in many] == [epoch.error_percent for epoch in one]
    assert [epoch.recomputed_error_percent for epoch in many] == [epoch.recomputed_error_percent for epoch in one]
    for losses, expected in zip(many, one, strict=True):
        assert expected.train_loss is not None
        actual = np.array([losses.train_loss, losses.validation_loss], np.float32)
        assert_close(actual, [expected.train_loss, expected.validation_loss])
    weights, expected_weights = (
        load_file(shared / name / norm / "whole" / "weights.safetensors") for name in ("many", "one")
    )
    assert weights.keys() == expected_weights.keys()
    for name, expected_weight in expected_weights.items():
        if name.endswith("num_batches_tracked"):
            assert weights[name] == expected_weight
        else:  # parameters, and the running statistics of all workers' images in order
            assert_close(weights[name], expected_weight.double().numpy())


@pytest.mark.parametrize("norm", ["bn", "gn+ws", "mixed", "augmented"])
def test_several_workers_stopped_by_one_of_them_end_with_the_same_bytes(shared: Path, norm: str) -> None:
    whole, stopped = shared / "many" / norm / "whole", shared / "many" / norm / "stopped"
    halfway = (stopped / "stopped.safetensors").read_bytes()
    for name in ("metrics.jsonl", "weights.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    assert halfway != (whole / "weights.safetensors").read_bytes()


def test_a_study_stops_its_workers_and_survives_the_loss_of_one(tmp_path: Path) -> None:
    overrides = {"norm": ["bn"], "norm_batch": [4], "train_images": 160, "epochs": 12, "seeds": 1, "workers": 2}
    study = load_study("norm-batch", overrides=overrides)

    def interrupt(progress: Progress) -> None:
        if progress.epochs_done > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path, on_progress=interrupt)
    assert not cell_processes(tmp_path)
    (checkpoint,) = tmp_path.rglob("checkpoint.safetensors")
    (log,) = tmp_path.rglob("log.txt")

    def kill_the_second(progress: Progress) -> None:
        if progress.running and "going on from step" in log.read_text():
            for pid in cell_processes(tmp_path)[1:]:
                os.kill(pid, signal.SIGKILL)

    (lost,) = run_study(study, tmp_path, on_progress=kill_the_second)
    assert lost.status == "failed"
    assert lost.reason.startswith("worker 2 killed by SIGKILL")
    assert not cell_processes(tmp_path)
    assert checkpoint.exists()

    (result,) = run_study(study, tmp_path)
    assert result.status == "done"
    assert len(read_metrics(log.parent / "metrics.jsonl")) == 12


def test_workers_that_calibrate_each_find_what_one_finds(tmp_path: Path) -> None:
    study = quick_fine_tuning(workers=2, norm="gn", start="calibrated", **{"pretraining.workers": 1})
    _, many = run_study(study, tmp_path)
    cell = cells_of(study)[1]
    one = run_cell(cell.model_copy(update={"workers": 1}), tmp_path / "cells" / "one")
    assert one is not None
    assert (many.status, many.num_groups) == ("done", one.num_groups)
    assert (many.initial_error_percent, many.error_percent) == (one.initial_error_percent, one.error_percent)
    lines, expected = (read_metrics(tmp_path / "cells" / name / "metrics.jsonl") for name in (cell.cell_id, "one"))
    losses = [(epoch.validation_loss, epoch.train_loss or 0.0) for epoch in expected]  # none before the first step
    assert_close(np.array([(epoch.validation_loss, epoch.train_loss or 0.0) for epoch in lines], np.float32), losses)


def test_workers_without_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(StudyError, match="torchrun --standalone --nproc-per-node=2"):
        Workers(2)
    set_by_torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}
    for name, value in set_by_torchrun.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StudyError, match="torchrun started 3"):
        Workers(2)
    with pytest.raises(StudyError, match="device=cuda:1"):
        Workers(3, "cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "64")
    with pytest.raises(StudyError, match="worker 65 of this machine has no CUDA device"):
        Workers(3, "cuda")


def test_a_worker_under_torchrun_sees_whether_the_study_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "cell")
    for pid, is_gone in ((os.getpid(), False), (ended.pid, True)):
        monkeypatch.setenv(PARENT_VARIABLE, str(pid))
        assert is_parent_gone() == is_gone
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert is_parent_gone()
    monkeypatch.delenv(PARENT_VARIABLE)
    assert not is_parent_gone()
