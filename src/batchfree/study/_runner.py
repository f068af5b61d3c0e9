"""Running the cells of a study on this machine: one subprocess each, so that a dead cell costs one cell."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchfree.errors import StudyError
from batchfree.records import (
    CellConfig,
    CellResult,
    StudyRecord,
    read_record,
    write_record,
)
from batchfree.study._cell import only_writer
from batchfree.study._norm_batch import NormBatchSettings

__all__ = ["PARENT_VARIABLE", "Progress", "run_study"]

POLL_SECONDS = 0.1
#: Tells a cell whose child it is: it stops, with a checkpoint, when that process is gone, however it went.
PARENT_VARIABLE = "BATCHFREE_STUDY_PID"
#: A cell that was asked to stop writes a checkpoint first; after this long it is killed.
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Progress:
    """How far a study is; epochs count those of finished cells too."""

    cells_done: int
    cells: int
    epochs_done: int
    epochs: int
    running: tuple[str, ...]  # ids


def run_study(
    settings: NormBatchSettings,
    out: Path,
    *,
    jobs: int | None = None,
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> list[CellResult]:
    """Runs every cell of the study that `out` does not hold yet.

    Args:
        out: made if it is not there; one study per folder.
        jobs: cells at the same time; as many as the cores hold at `settings.threads` each where `None`.
        command: what the user typed, kept with the study.
        on_progress: called a few times a second.

    Returns:
        One result per cell, in the study's order. A cell that crashed or was killed has status "failed" and runs again
        the next time; one that diverged has its result.

    Raises:
        StudyError, DataError, ConversionError: nothing has been written.
        KeyboardInterrupt: after every child process has written its checkpoint and ended.
    """
    settings.check()
    jobs = _check_jobs(jobs, settings.threads)
    data = settings.load()
    cells = settings.cells(data)
    del data  # the cells read it themselves, each in its process
    record = _record(settings, cells, command)
    _check_owner(out, record)
    with only_writer(out):
        write_record(out / "study.json", record)
        return _LocalRun(out, cells, jobs, on_progress).finish()


class _LocalRun:
    """The child processes of one study, and what is still to do."""

    def __init__(
        self, out: Path, cells: tuple[CellConfig, ...], jobs: int, on_progress: Callable[[Progress], None]
    ) -> None:
        self.out = out
        self.cells = cells
        self.jobs = jobs
        self.on_progress = on_progress
        self.waiting = [cell for cell in cells if not self._is_finished(cell)]
        self.running: dict[str, tuple[CellConfig, subprocess.Popen[bytes]]] = {}

    def finish(self) -> list[CellResult]:
        """Runs all cells; on the way out, whatever the reason, no child is left."""
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < self.jobs:
                    self._start(self.waiting.pop(0))
                self.on_progress(self._progress())
                time.sleep(POLL_SECONDS)
                self._collect()
        finally:
            self._stop_children()
        self.on_progress(self._progress())
        return [read_record(self._folder(cell) / "result.json", CellResult) for cell in self.cells]

    def _start(self, cell: CellConfig) -> None:
        folder = self._folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)  # of a failed attempt
        words = [sys.executable, "-m", "batchfree", "cell", *cell.assignments(), "--out", str(folder)]
        with open(folder / "log.txt", "ab") as log:
            log.write(f"$ {shlex.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(cell.threads),
                    "MKL_NUM_THREADS": str(cell.threads),
                    PARENT_VARIABLE: str(os.getpid()),
                },
                start_new_session=True,  # Ctrl-C in the terminal reaches the study, which tells the cells to stop
            )
        self.running[cell.cell_id] = (cell, process)

    def _collect(self) -> None:
        for cell_id, (cell, process) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[cell_id]
            if not self._is_finished(cell):
                reason = _reason(process.returncode, self._folder(cell) / "log.txt")
                failed = CellResult(cell_id=cell_id, status="failed", reason=reason)
                write_record(self._folder(cell) / "result.json", failed)

    def _stop_children(self) -> None:
        with _no_second_interrupt():
            for _, process in self.running.values():
                process.terminate()
            deadline = time.monotonic() + STOP_SECONDS
            for _, process in self.running.values():
                try:
                    process.wait(timeout=max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _progress(self) -> Progress:
        epochs = {cell.cell_id: self._epochs_done(cell) for cell in self.cells}
        done = len(self.cells) - len(self.waiting) - len(self.running)
        return Progress(
            cells_done=done,
            cells=len(self.cells),
            epochs_done=sum(epochs.values()),
            epochs=sum(cell.epochs for cell in self.cells),
            running=tuple(self.running),
        )

    def _epochs_done(self, cell: CellConfig) -> int:
        folder = self._folder(cell)
        if (folder / "result.json").exists():
            return cell.epochs
        metrics = folder / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def _is_finished(self, cell: CellConfig) -> bool:
        path = self._folder(cell) / "result.json"
        return path.exists() and read_record(path, CellResult).status != "failed"

    def _folder(self, cell: CellConfig) -> Path:
        return self.out / "cells" / cell.cell_id


def _check_jobs(jobs: int | None, threads: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs is None:
        return max(1, cores // max(1, threads))
    if jobs < 1:
        raise StudyError(f"--jobs {jobs} was given. It must be at least 1. Leave it out for as many as the cores hold.")
    return jobs


def _record(settings: NormBatchSettings, cells: tuple[CellConfig, ...], command: str) -> StudyRecord:
    described = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in settings.model_dump(exclude_none=True).items()
    }
    return StudyRecord(study="norm-batch", command=command, settings=described, cells=cells)


def _check_owner(out: Path, record: StudyRecord) -> None:
    """Refuses an `out` that holds something else than this study."""
    path = out / "study.json"
    if path.exists():
        owner = read_record(path, StudyRecord)
        if [cell.cell_id for cell in owner.cells] == [cell.cell_id for cell in record.cells]:
            return
        names = sorted(owner.settings.keys() | record.settings.keys())
        differing = [
            f"{name}: {owner.settings.get(name, 'default')} there, {record.settings.get(name, 'default')} here"
            for name in names
            if owner.settings.get(name) != record.settings.get(name)
        ] or ["the data set's images"]
        raise StudyError(
            f"{out} was made by a different study ({'; '.join(differing)}). A folder holds one study, so that its "
            f"report compares like with like. Pass another --out, or the settings of the first: {owner.command}"
        )
    if out.exists() and (not out.is_dir() or any(entry.name != ".lock" for entry in out.iterdir())):
        raise StudyError(
            f"{out} exists and holds no study. A new or empty folder is needed. Pass another --out, or empty this one."
        )


def _reason(returncode: int, log: Path) -> str:
    """Why a cell has no result: its exit, and the last line it printed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = "" if not lines or lines[-1].startswith("$ ") else f": {lines[-1]}"
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}{last}"
    return f"ended with exit code {returncode}{last}"


@contextmanager
def _no_second_interrupt() -> Iterator[None]:
    """An impatient second Ctrl-C, or SIGTERM, must not leave children behind."""
    if threading.current_thread() is not threading.main_thread():  # no signal reaches us here
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
