"""What ends a cell early is a row with its reason; the other cells finish, and the next run loses nothing."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchfree.errors import RecordError, StudyError
from batchfree.records import CellResult, read_study
from batchfree.study import Limits, Study, retry_study, run_cell, run_study
from batchfree.study import _runner as runner
from batchfree.study._engine import Task
from tests.study.forks import ForkedEngine, ForkedJob, fork, in_fork
from tests.study.quick import cells_of, numbers, quick_study

#: A file that a cell makes when it waits to be stopped.
REACHED = "reached"
Numbers = dict[str, tuple[bytes, bytes]]


def group_norm() -> Study:
    return quick_study(norm="gn", train_images=64)


def run_undisturbed(study: Study, out: Path) -> Numbers:
    run_study(study, out, engine=ForkedEngine())
    return numbers(out)


def at_logging(cell: str, epoch: int, act: Callable[[Path], object]) -> Callable[[Task], None]:
    """Sabotage of the cells whose id starts so: before they log that epoch, `act` gets their folder."""

    def sabotage(task: Task) -> None:
        left = [epoch]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event == "open" and str(arguments[0]).endswith("metrics.jsonl") and arguments[1] == "a":
                left[0] -= 1
                if left[0] == -1:  # the first opening, at the start, cuts the file
                    act(task.log.parent)

        if task.log.parent.name.startswith(cell):
            sys.addaudithook(hook)

    return sabotage


def segfault(_: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def kill(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def go_on_once_stopped(folder: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    (folder / REACHED).touch()
    signal.sigwait([signal.SIGTERM])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    signal.raise_signal(signal.SIGTERM)


def hang(folder: Path) -> None:
    (folder / REACHED).touch()
    while True:
        signal.pause()


def run_with_deaths(folder: Path) -> tuple[list[CellResult], Numbers, list[CellResult], Numbers, Numbers]:
    whole = run_undisturbed(quick_study(), folder / "whole")

    def sabotage(task: Task) -> None:
        at_logging("bn-n32", 2, segfault)(task)
        at_logging("bn-n2-", 2, kill)(task)

    engine = ForkedEngine(sabotage=sabotage)
    results = run_study(quick_study(), folder / "out", engine=engine)
    first = numbers(folder / "out")
    again = run_study(quick_study(), folder / "out", engine=ForkedEngine())
    return results, first, again, numbers(folder / "out"), whole


def test_a_segfault_and_a_kill_cost_their_cells_and_the_next_run_makes_them(tmp_path: Path) -> None:
    results, first, again, last, whole = in_fork(run_with_deaths, tmp_path)
    assert [result.status for result in results] == ["failed", "failed", "done"]
    assert "killed by SIGSEGV" in results[0].reason
    assert "killed by SIGKILL" in results[1].reason
    finished = results[2].cell_id
    assert first[finished] == whole[finished]
    assert [result.status for result in again] == ["done"] * 3
    assert last == whole


@dataclass
class PatientJob(ForkedJob):
    """Is not stopped before it waits for that."""

    reached: Path = Path()

    def stop(self) -> None:
        while self.poll() is None and not self.reached.exists():
            time.sleep(0.01)
        super().stop()


class PatientEngine(ForkedEngine):
    def start(self, task: Task) -> PatientJob:
        return PatientJob(super().start(task).pid, reached=task.log.with_name(REACHED))


def run_out_of_time(study: Study, out: Path) -> list[CellResult]:
    """Every cell stops where it logs its second epoch, and is told that its time is over."""
    engine = PatientEngine(sabotage=at_logging("", 2, go_on_once_stopped))
    return run_study(study, out, engine=engine, limits=Limits(seconds=0))


def run_into_the_time_limit(folder: Path) -> tuple[list[CellResult], list[str], list[CellResult], str, bool]:
    whole = run_undisturbed(group_norm(), folder / "whole")
    out = folder / "out"
    late = run_out_of_time(group_norm(), out)
    (cell,) = (out / "cells").iterdir()
    files = [path.name for path in cell.iterdir()]
    again = retry_study(out, engine=ForkedEngine())
    return late, files, again, (cell / "log.txt").read_text(), numbers(out) == whole


def test_a_cell_past_its_time_is_a_row_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    late, files, again, log, is_whole = in_fork(run_into_the_time_limit, tmp_path)
    assert [result.status for result in late] == ["timed out"]
    assert "checkpoint is kept" in late[0].reason
    assert "checkpoint.safetensors" in files
    assert [result.status for result in again] == ["done"]
    assert "going on from step" in log
    assert is_whole


def run_a_cell_that_does_not_stop(out: Path) -> tuple[list[CellResult], str]:
    runner.STOP_SECONDS = 0.0

    engine = PatientEngine(sabotage=at_logging("", 2, hang))
    results = run_study(group_norm(), out, engine=engine, limits=Limits(seconds=0))
    (log,) = out.glob("cells/*/log.txt")
    return results, log.read_text()


def test_a_cell_that_does_not_stop_when_its_time_is_over_is_killed(tmp_path: Path) -> None:
    results, log = in_fork(run_a_cell_that_does_not_stop, tmp_path / "out")
    assert [result.status for result in results] == ["timed out"]
    assert "Stopped" not in log


def greedy_study() -> Study:
    """The second arm takes some 350 MB, the first 150 MB at most, modules that it imports included."""
    return quick_study(norm="gn", sgd_batch=[2, 128], image_size=48, train_images=128, epochs=1, seeds=1)


def data_bytes() -> int:
    """What RLIMIT_DATA counts, of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


def run_into_the_memory_limit(folder: Path) -> tuple[list[CellResult], list[CellResult], Numbers, Numbers, list[bytes]]:
    whole = run_undisturbed(greedy_study(), folder / "whole")
    out = folder / "out"
    room = data_bytes() + (220 << 20)  # between what the two arms take
    short = run_study(greedy_study(), out, engine=ForkedEngine(), limits=Limits(memory_bytes=room))
    again = retry_study(out, engine=ForkedEngine(), limits=Limits(memory_bytes=4 * room))
    configs = [(root / "cells" / short[1].cell_id / "config.json").read_bytes() for root in (folder / "whole", out)]
    return short, again, numbers(out), whole, configs


def test_a_cell_that_needs_more_memory_is_a_row_and_keeps_its_batch_size(tmp_path: Path) -> None:
    short, again, last, whole, configs = in_fork(run_into_the_memory_limit, tmp_path)
    assert [result.status for result in short] == ["done", "out of memory"]
    assert "memory" in short[1].reason
    assert [result.status for result in again] == ["done", "done"]
    assert configs[0] == configs[1]
    assert json.loads(configs[1])["sgd_batch"] == 128
    assert last == whole


def change_torch(folder: Path) -> tuple[list[CellResult], list[CellResult], bool]:
    whole = run_undisturbed(group_norm(), folder / "whole")
    out = folder / "out"
    run_out_of_time(group_norm(), out)
    (environment,) = (out / "cells").glob("*/environment.json")
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "torch": "2.0.0"}))
    refused = retry_study(out, engine=ForkedEngine())
    anew = retry_study(out, engine=ForkedEngine(), from_start=True)
    return refused, anew, numbers(out) == whole


def test_a_checkpoint_of_another_torch_is_refused_and_the_row_says_what_to_do(tmp_path: Path) -> None:
    refused, anew, is_whole = in_fork(change_torch, tmp_path)
    assert [result.status for result in refused] == ["failed"]
    assert "was begun with torch 2.0.0" in refused[0].reason
    assert "retry DIR --from-start" in refused[0].reason
    assert [result.status for result in anew] == ["done"]
    assert is_whole


def run_twice_at_once(folder: Path) -> tuple[str, int, bool]:
    whole = run_undisturbed(group_norm(), folder / "whole")
    out = folder / "out"
    resume, resumes = os.pipe()
    waits = at_logging("", 1, lambda _: os.read(resume, 1))
    first = fork(lambda: len(run_study(group_norm(), out, engine=ForkedEngine(sabotage=waits))) - 1)
    while not list(out.glob("cells/*/metrics.jsonl")):
        time.sleep(0.01)
    refused = ""
    try:
        run_study(group_norm(), out, engine=ForkedEngine())
    except StudyError as error:
        refused = str(error)
    os.write(resumes, b"x")
    return refused, os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]), numbers(out) == whole


def test_of_two_runners_in_one_folder_the_second_is_refused_and_the_first_finishes(tmp_path: Path) -> None:
    refused, status, is_whole = in_fork(run_twice_at_once, tmp_path)
    assert "another process is at work in" in refused
    assert status == 0
    assert is_whole


def run_to_divergence(out: Path) -> tuple[list[CellResult], bool]:
    results = run_study(quick_study(norm="gn", learning_rate=1e30), out, engine=ForkedEngine())
    return results, run_study(quick_study(norm="gn", learning_rate=1e30), out, engine=NoEngine()) == results


class NoEngine(ForkedEngine):
    def start(self, task: Task) -> ForkedJob:
        raise AssertionError(f"{task} was started")


def test_divergence_is_a_row_with_its_step_and_is_not_tried_again(tmp_path: Path) -> None:
    results, is_kept = in_fork(run_to_divergence, tmp_path / "out")
    assert [result.status for result in results] == ["diverged"]
    assert "at step 2 of epoch 1" in results[0].reason
    assert is_kept


def test_results_of_another_schema_version_are_refused_and_not_touched(tmp_path: Path) -> None:
    study, out = group_norm(), tmp_path / "out"
    in_fork(run_undisturbed, study, out)
    (cell,) = cells_of(study)

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}

    for name in ("study.json", f"cells/{cell.cell_id}/result.json", f"cells/{cell.cell_id}/config.json"):
        shutil.copy(out / name, tmp_path / "kept")
        (out / name).write_text(json.dumps({**json.loads((out / name).read_text()), "schema_version": 1}))
        before = contents()
        refusals: list[Callable[[], object]] = [lambda: read_study(out)]
        if name == "study.json":
            refusals += [lambda: run_study(study, out), lambda: retry_study(out)]
        elif name.endswith("result.json"):
            refusals += [lambda: run_study(study, out), lambda: run_cell(cell, out / "cells" / cell.cell_id)]
        else:
            refusals = [lambda: run_cell(cell, out / "cells" / cell.cell_id)]
        for refused in refusals:
            with pytest.raises(RecordError, match=r"schema version 1; .* Use the batchfree that wrote it"):
                refused()
        assert contents() == before
        shutil.copy(tmp_path / "kept", out / name)
