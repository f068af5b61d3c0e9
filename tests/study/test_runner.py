from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from batchfree.errors import StudyError
from batchfree.records import read_study
from batchfree.study import NormBatchSettings, Progress, run_study
from batchfree.study._runner import _reason


def numbers(out: Path) -> dict[str, tuple[bytes, bytes]]:
    """What the cells found, byte for byte."""
    return {
        folder.name: ((folder / "result.json").read_bytes(), (folder / "metrics.jsonl").read_bytes())
        for folder in sorted((out / "cells").iterdir())
    }


def children(out: Path) -> set[int]:
    """Live processes that run a cell of the study in `out`."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"cell" in words and any(word.startswith(bytes(out)) for word in words):
                found.add(int(folder.name))
    return found


def test_a_study_runs_and_a_deleted_cell_alone_runs_again_with_the_same_numbers(
    quick: NormBatchSettings, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    results = run_study(quick, tmp_path / "out", jobs=2, command="typed", on_progress=seen.append)
    assert [result.status for result in results] == ["done"] * 3
    assert (seen[-1].cells_done, seen[-1].cells, seen[-1].epochs_done, seen[-1].epochs) == (3, 3, 9, 9)
    assert any(progress.running for progress in seen)

    before = numbers(tmp_path / "out")
    study, records = read_study(tmp_path / "out")
    assert study.command == "typed"
    assert [record.config for record in records] == list(study.cells)
    deleted = study.cells[1].cell_id
    written = {name: (tmp_path / "out" / "cells" / name / "result.json").stat().st_mtime_ns for name in before}
    shutil.rmtree(tmp_path / "out" / "cells" / deleted)
    run_study(quick, tmp_path / "out", jobs=1)
    assert numbers(tmp_path / "out") == before
    again = {name: (tmp_path / "out" / "cells" / name / "result.json").stat().st_mtime_ns for name in before}
    assert {name for name in before if again[name] != written[name]} == {deleted}


def test_the_stand_alone_command_of_a_cell_gives_its_numbers(quick: NormBatchSettings, tmp_path: Path) -> None:
    only = quick.model_copy(update={"norms": ("gn",)})
    run_study(only, tmp_path / "out", jobs=1)
    (record,) = read_study(tmp_path / "out")[1]
    words = record.config.command("alone").split()
    assert words[0] == "batchfree"
    subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, check=True, capture_output=True)
    alone = tmp_path / "alone"
    inside = tmp_path / "out" / "cells" / record.config.cell_id
    assert (alone / "metrics.jsonl").read_bytes() == (inside / "metrics.jsonl").read_bytes()


def test_a_killed_cell_is_a_row_with_its_reason_and_the_others_finish(quick: NormBatchSettings, tmp_path: Path) -> None:
    slow = quick.model_copy(update={"epochs": 12, "norm_batch": (32,)})

    def kill_the_first(progress: Progress) -> None:
        victims = [name for name in progress.running if name.startswith("bn")]
        if victims and (tmp_path / "cells" / victims[0] / "metrics.jsonl").exists():
            for pid in children(tmp_path):
                if victims[0].encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    results = run_study(slow, tmp_path, jobs=2, on_progress=kill_the_first)
    assert [result.status for result in results] == ["failed", "done"]
    assert "SIGKILL" in results[0].reason
    assert [result.status for result in run_study(slow, tmp_path)] == ["done", "done"]


def test_an_interrupt_leaves_no_child_and_loses_nothing(quick: NormBatchSettings, tmp_path: Path) -> None:
    slow = quick.model_copy(update={"epochs": 25, "norm_batch": (32,)})

    def interrupt_once_training(progress: Progress) -> None:
        if progress.epochs_done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(slow, tmp_path / "stopped", jobs=2, on_progress=interrupt_once_training)
    assert not children(tmp_path)
    folders = list((tmp_path / "stopped" / "cells").iterdir())
    assert any((folder / "checkpoint.safetensors").exists() for folder in folders)
    assert not any((folder / "result.json").exists() for folder in folders)

    run_study(slow, tmp_path / "stopped", jobs=2)
    run_study(slow, tmp_path / "whole", jobs=2)
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")
    logs = "".join((folder / "log.txt").read_text() for folder in folders)
    assert "going on from step" in logs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_command_takes_its_children_along(number: signal.Signals, tmp_path: Path) -> None:
    words = ["study", "norm-batch", "--norms", "gn", "--seeds", "2", "--epochs", "500", "--train-images", "160"]
    words += ["--jobs", "2", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-m", "batchfree", *words], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(children(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(children(tmp_path)) == 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"the same command goes on from there" in errors
    assert not children(tmp_path)


def test_children_of_a_killed_study_stop_by_themselves_and_the_next_one_goes_on(tmp_path: Path) -> None:
    words = ["study", "norm-batch", "--norms", "gn", "--seeds", "1", "--epochs", "40", "--train-images", "160"]
    words += ["--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-m", "batchfree", *words], stderr=subprocess.DEVNULL)
    metrics: list[Path] = []
    while not metrics:
        time.sleep(0.1)
        metrics = [path for path in tmp_path.rglob("metrics.jsonl") if path.stat().st_size]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while children(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children(tmp_path)
    assert (metrics[0].parent / "checkpoint.safetensors").exists()
    subprocess.run([sys.executable, "-m", "batchfree", *words], check=True, capture_output=True)
    assert (metrics[0].parent / "result.json").exists()


def test_two_studies_do_not_share_a_folder_at_the_same_time(quick: NormBatchSettings, tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(StudyError, match="another process"):
        run_study(quick, tmp_path)


def test_a_crash_is_a_row_with_its_whole_last_line(
    quick: NormBatchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause = "a reason of more than eighty characters, " * 3
    crash = tmp_path / "crash"
    crash.mkdir()
    # Python imports this module at start, in the cells: the data set's reader fails there
    (crash / "sitecustomize.py").write_text(
        f"import sys\nif 'cell' in sys.argv or 'cell' in sys.orig_argv:\n"
        f"    import sklearn.datasets\n    def load_digits(): raise RuntimeError({cause!r})\n"
        f"    sklearn.datasets.load_digits = load_digits\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(crash))
    results = run_study(quick.model_copy(update={"norms": ("gn",)}), tmp_path / "out")
    assert [result.status for result in results] == ["failed"]
    assert results[0].reason == f"ended with exit code 1: RuntimeError: {cause.strip()}"


def test_a_folder_holds_one_study(quick: NormBatchSettings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    only = quick.model_copy(update={"norms": ("gn",), "epochs": 1})
    run_study(only, out, command="batchfree study norm-batch --seeds 1")
    before = sorted(path for path in out.rglob("*"))
    with pytest.raises(StudyError, match=r"epochs: 1 there, 2 here.*--seeds 1"):
        run_study(only.model_copy(update={"epochs": 2}), out)
    with pytest.raises(StudyError, match="holds no study"):
        run_study(only, tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StudyError, match="holds no study"):
        run_study(only, tmp_path / "file")
    assert sorted(path for path in out.rglob("*")) == before


def test_a_refused_study_writes_nothing(quick: NormBatchSettings, tmp_path: Path) -> None:
    for settings, jobs in ((quick.model_copy(update={"norms": ("gm",)}), 1), (quick, 0)):
        with pytest.raises(StudyError):
            run_study(settings, tmp_path / "out", jobs=jobs)
    assert not (tmp_path / "out").exists()


def test_reasons_name_the_signal_or_the_exit_code_and_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("$ command\nTraceback\nMemoryError: no room\n\n")
    assert _reason(1, log) == "ended with exit code 1: MemoryError: no room"
    assert _reason(-signal.SIGSEGV, log) == "killed by SIGSEGV: MemoryError: no room"
    log.write_text("$ command\n")
    assert _reason(-signal.SIGKILL, log) == "killed by SIGKILL"


def test_a_study_may_run_outside_the_main_thread(quick: NormBatchSettings, tmp_path: Path) -> None:
    results = []
    only = quick.model_copy(update={"norms": ("gn",), "epochs": 1})
    thread = threading.Thread(target=lambda: results.extend(run_study(only, tmp_path / "out")))
    thread.start()
    thread.join()
    assert [result.status for result in results] == ["done"]
