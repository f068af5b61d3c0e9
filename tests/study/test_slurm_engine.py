from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from batchfree.errors import StudyError
from batchfree.study import Progress, SlurmEngine, load_study, run_study
from tests.study.processes import cell_numbers, cell_processes


def engine(folder: Path, minutes: int = 5) -> SlurmEngine:
    """Processes on this machine, by submitit's own way of trying out."""
    return SlurmEngine(
        folder, cluster="local", partition=None, minutes=minutes, cpus_per_cell=1, gpus_per_cell=0, memory_gb=None
    )


def test_jobs_that_are_stopped_and_that_crash_end_with_the_bytes_of_a_local_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "jobs"
    overrides = {"norm": ["gn", "in"], "norm_batch": [4], "train_images": 160, "epochs": 16, "seeds": 1}
    study = load_study("norm-batch", overrides=overrides)

    def interrupt(progress: Progress) -> None:
        if progress.epochs_done > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, out, engine=engine(out / "slurm"), on_progress=interrupt)
    assert not cell_processes(out)
    assert list(out.rglob("checkpoint.safetensors"))

    # Python imports this module at its start: the cells with Group Norm crash
    crash = tmp_path / "crash"
    crash.mkdir()
    (crash / "sitecustomize.py").write_text(
        "import sys\nif 'norm=gn' in sys.orig_argv: raise SystemExit('the reason')\n"
    )
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(crash), prepend=":")
        crashed, done = run_study(study, out, engine=engine(out / "slurm"))
    assert (crashed.status, crashed.reason) == ("failed", "ended with exit code 1: SystemExit: the reason")
    assert done.status == "done"

    run_study(study, out, engine=engine(out / "slurm"))
    run_study(study, tmp_path / "local", jobs=2)
    assert cell_numbers(out) == cell_numbers(tmp_path / "local")
    assert "going on from step" in "".join(log.read_text() for log in out.rglob("log.txt"))


def test_a_machine_without_slurm_is_told_how_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(StudyError, match="--slurm-cluster local"):
        SlurmEngine(tmp_path, partition="gpu", minutes=5, cpus_per_cell=1, gpus_per_cell=1, memory_gb=8)
    with pytest.raises(StudyError, match="at least a minute"):
        engine(tmp_path, minutes=0)
    assert not list(tmp_path.iterdir())
