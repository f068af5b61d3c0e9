from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest

from batchfree.errors import ConversionError, StudyError
from batchfree.records import CellResult, read_study
from batchfree.study import Progress, Study, estimate_study, plan_study, retry_study, run_study
from tests.study.forks import ForkedEngine, fork, in_fork
from tests.study.quick import cells_of, numbers, quick_fine_tuning, quick_study


def run_forked(study: Study, out: Path, jobs: int = 1, command: str = "") -> tuple[list[CellResult], list[Progress]]:
    seen: list[Progress] = []
    return run_study(study, out, engine=ForkedEngine(jobs), command=command, on_progress=seen.append), seen


def test_a_study_runs_and_a_deleted_cell_alone_runs_again_with_the_same_numbers(quick: Study, tmp_path: Path) -> None:
    results, seen = in_fork(run_forked, quick, tmp_path / "out", 2, "typed")
    assert [result.status for result in results] == ["done"] * 3
    assert (seen[-1].cells_done, seen[-1].cells, seen[-1].epochs_done, seen[-1].epochs) == (3, 3, 9, 9)
    assert max(len(progress.running) for progress in seen) == 2

    before = numbers(tmp_path / "out")
    study, records = read_study(tmp_path / "out")
    assert study.command == "typed"
    assert [record.config for record in records] == list(study.cells)
    deleted = study.cells[1].cell_id
    written = {name: (tmp_path / "out" / "cells" / name / "result.json").stat().st_mtime_ns for name in before}
    shutil.rmtree(tmp_path / "out" / "cells" / deleted)
    in_fork(run_forked, quick, tmp_path / "out")
    assert numbers(tmp_path / "out") == before
    again = {name: (tmp_path / "out" / "cells" / name / "result.json").stat().st_mtime_ns for name in before}
    assert {name for name in before if again[name] != written[name]} == {deleted}


def test_the_stand_alone_command_of_a_cell_gives_its_numbers(tmp_path: Path) -> None:
    in_fork(run_forked, quick_study(norm="gn"), tmp_path / "out")
    (record,) = read_study(tmp_path / "out")[1]
    words = shlex.split(record.config.command("alone"))
    assert words[0] == "batchfree"
    subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, check=True, capture_output=True)
    inside = tmp_path / "out" / "cells" / record.config.cell_id
    for name in ("metrics.jsonl", "result.json", "config.json"):
        assert (tmp_path / "alone" / name).read_bytes() == (inside / name).read_bytes()


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    out, only = tmp_path / "out", quick_study(norm="gn", epochs=1)
    in_fork(run_forked, only, out, 1, "batchfree study norm-batch --seeds 1")
    before = sorted(out.rglob("*"))
    with pytest.raises(StudyError, match=r"epochs: 1 there, 2 here.*--seeds 1"):
        run_study(quick_study(norm="gn", epochs=2), out)
    with pytest.raises(StudyError, match="holds no study"):
        run_study(only, tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StudyError, match="holds no study"):
        run_study(only, tmp_path / "file")
    assert sorted(out.rglob("*")) == before


def test_a_refused_study_writes_nothing(quick: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StudyError, match="must be at least 1"):
        run_study(quick, out, jobs=0)
    with pytest.raises(StudyError, match="more than the 16 training images"):
        run_study(quick_study(train_images=16), out)
    with pytest.raises(ConversionError):
        run_study(quick_study(norm="gn", groups=5), out)
    with pytest.raises(StudyError, match="holds no study"):
        retry_study(out)
    assert not out.exists()


def test_the_pre_trainings_own_device_and_threads_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="'nowhere' was given"):
        run_study(quick_fine_tuning(**{"pretraining.device": "nowhere"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    threads = quick_fine_tuning(**{"pretraining.threads": 2, "norm": "gn", "start": "copied"})
    assert estimate_study(threads, tmp_path / "out").slots == 2


def test_an_arm_that_cannot_be_built_is_a_row_with_its_reason_for_each_seed(tmp_path: Path) -> None:
    study = quick_study(norm="gn", groups=[4, 5], seeds=2, epochs=1)
    plan = plan_study(study)
    assert list(plan.skipped) == [cell.cell_id for cell in cells_of(study) if cell.groups == 5]
    results, _ = in_fork(run_forked, study, tmp_path / "out")
    assert [result.status for result in results] == ["done", "done", "skipped", "skipped"]
    assert all("16 channels" in result.reason for result in results[2:])


def test_two_studies_do_not_share_a_folder_at_the_same_time(quick: Study, tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(StudyError, match="another process"):
        run_study(quick, tmp_path)


def run_killed_at_its_record(study: Study, out: Path) -> list[CellResult]:
    """A study that is killed before study.json takes its place, and the next one."""

    def kill_at_record(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).endswith("study.json"):
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> int:
        sys.addaudithook(kill_at_record)
        run_study(study, out, engine=ForkedEngine())
        return 0

    status = os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])
    assert status == -signal.SIGKILL, status
    assert [path.suffix for path in out.iterdir() if path.name != ".lock"] == [".tmp"]
    return run_study(study, out, engine=ForkedEngine())


def test_a_study_killed_while_it_writes_its_record_begins_again_in_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = in_fork(run_killed_at_its_record, quick_study(norm="gn", epochs=1), out)
    assert [result.status for result in results] == ["done"]
    assert sorted(path.name for path in out.iterdir()) == [".lock", "cells", "study.json"]


def test_a_study_may_run_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[CellResult] = []
    study = quick_study(norm="gn", epochs=1)
    thread = threading.Thread(target=lambda: results.extend(run_study(study, tmp_path / "out")))
    thread.start()
    thread.join()
    assert [result.status for result in results] == ["done"]
