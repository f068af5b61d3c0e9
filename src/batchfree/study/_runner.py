"""Running the cells of a study: one process each, so that a dead cell costs one cell."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchfree.errors import StudyError
from batchfree.records import CellConfig, CellResult, Status, read_record, write_record
from batchfree.study._engine import Engine, Job, Task
from batchfree.study._environment import MEMORY_VARIABLE, says_out_of_memory
from batchfree.study._folder import says_what_to_do_when_full
from batchfree.study._torchrun_log import first_failure
from batchfree.study._trained_network import TRAINED, load_trained

__all__ = ["Limits", "Progress", "StudyRun", "is_finished"]

POLL_SECONDS = 0.1
#: The network interface that no other machine can reach.
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
#: A cell that was asked to stop writes a checkpoint first; after this long it is killed.
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Limits:
    """What one start of a cell may take; `None`: as much as it wants. A cell that hits a limit is a row of its own."""

    seconds: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Progress:
    """How far a study is; epochs count those of finished cells too."""

    cells_done: int
    cells: int
    epochs_done: int
    epochs: int
    running: tuple[str, ...]  # ids


@dataclass
class _Running:
    cell: CellConfig
    job: Job
    logged_bytes: int  # before it was handed to the engine
    started: float | None = None  # `None` while it may still wait in the engine's queue
    is_timed_out: bool = False


class StudyRun:
    """The jobs of one study, and what is still to do.

    Args:
        out: holds `study.json`; nobody else may be at work in it.
        cells: the ones that `out` does not hold yet are run.
    """

    def __init__(
        self,
        out: Path,
        cells: Sequence[CellConfig],
        engine: Engine,
        limits: Limits,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.out = out
        self.cells = cells
        self.engine = engine
        self.limits = limits
        self.on_progress = on_progress
        self.waiting = [cell for cell in cells if not is_finished(out, cell)]
        self.running: dict[str, _Running] = {}
        self._trained: set[str] = set()  # pre-trainings that are known to have left a network
        self._repeated: set[str] = set()  # pre-trainings that run again, since theirs was lost

    def finish(self) -> list[CellResult]:
        """Runs all cells; on the way out, whatever the reason, no job is left.

        Raises:
            StudyError: the disk is full or `out` cannot be written any more.
        """
        try:
            with says_what_to_do_when_full(self.out):
                while self.waiting or self.running:
                    self._give_up_dependants()
                    while self._has_slot() and (cell := self._next_ready()) is not None:
                        self.waiting.remove(cell)
                        self._start(cell)
                    self.on_progress(self._progress())
                    time.sleep(POLL_SECONDS)
                    self._collect()
        finally:
            self._stop_jobs()
        self.on_progress(self._progress())
        return [read_record(self._folder(cell) / "result.json", CellResult) for cell in self.cells]

    def _has_slot(self) -> bool:
        return self.engine.slots is None or len(self.running) < self.engine.slots

    def _next_ready(self) -> CellConfig | None:
        """The next cell that starts from nothing that is still to be trained."""
        open_ids = {cell.cell_id for cell in self.waiting} | self.running.keys()
        return next((cell for cell in self.waiting if cell.pretraining not in open_ids), None)

    def _give_up_dependants(self) -> None:
        """Cells whose pre-training ended without a network become rows; tried again when it is.

        One that left a network which is lost or damaged since is made again, once.
        """
        open_ids = {cell.cell_id for cell in self.waiting} | self.running.keys()
        ended = {cell.pretraining for cell in self.waiting if cell.pretraining} - open_ids - self._trained
        for cell_id in sorted(ended):
            result = read_record(self.out / "cells" / cell_id / "result.json", CellResult)
            status: Status = "skipped" if result.is_final else "failed"
            reason = f"{result.status}: {result.reason}"
            if result.status == "done":
                try:
                    load_trained(self.out / "cells" / cell_id / TRAINED)
                except StudyError as lost:
                    if cell_id not in self._repeated:
                        self._repeated.add(cell_id)
                        self.waiting[:0] = [cell for cell in self.cells if cell.cell_id == cell_id]
                        continue
                    status, reason = "failed", str(lost)
                else:
                    self._trained.add(cell_id)
                    continue
            self._give_up(cell_id, status, f"its pre-training, {cell_id}, has no network: {reason}")

    def _give_up(self, pretraining: str, status: Status, reason: str) -> None:
        for cell in [cell for cell in self.waiting if cell.pretraining == pretraining]:
            self.waiting.remove(cell)
            self._folder(cell).mkdir(parents=True, exist_ok=True)
            lost = CellResult(cell_id=cell.cell_id, status=status, reason=reason)
            write_record(self._folder(cell) / "result.json", lost)

    def _start(self, cell: CellConfig) -> None:
        folder = self._folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)  # of an attempt that failed
        words = [sys.executable, "-m"]
        threads = str(cell.threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # which cuBLAS wants to be deterministic
        if cell.workers > 1:
            # On one machine: by its loopback address, since its own name need not resolve; and they find each other by
            # a file, since the port for it takes pickles from anywhere.
            words += ["torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-conf=store_type=file"]
            words += [f"--rdzv-id={cell.cell_id}", "--local-addr=127.0.0.1", f"--nproc-per-node={cell.workers}"]
            words += ["--module"]
            environment |= {f"{library}_SOCKET_IFNAME": LOOPBACK for library in ("GLOO", "NCCL")}
        words += ["batchfree", "cell", *cell.assignments(), "--out", str(folder.resolve())]
        if self.limits.memory_bytes is not None:
            environment[MEMORY_VARIABLE] = str(self.limits.memory_bytes)
        logged_bytes = _size_bytes(folder / "log.txt")
        job = self.engine.start(Task(words, folder / "log.txt", environment))
        self.running[cell.cell_id] = _Running(cell, job, logged_bytes)

    def _collect(self) -> None:
        for cell_id, running in list(self.running.items()):
            outcome = running.job.poll()
            if outcome is None:
                self._stop_late(running)
                continue
            del self.running[cell_id]
            if not (self._folder(running.cell) / "result.json").exists():
                self._record_loss(running, outcome)

    def _stop_late(self, running: _Running) -> None:
        seconds = self.limits.seconds
        if seconds is None:
            return
        if running.started is None:
            if _size_bytes(self._folder(running.cell) / "log.txt") == running.logged_bytes:
                return  # an engine logs a process's words when it starts it
            running.started = time.monotonic()
        late = time.monotonic() - running.started - seconds
        if late >= 0 and not running.is_timed_out:
            running.is_timed_out = True
            running.job.stop()
        elif late >= STOP_SECONDS:
            running.job.kill()

    def _record_loss(self, running: _Running, outcome: int | str) -> None:
        folder = self._folder(running.cell)
        reason = _reason(outcome, folder / "log.txt")
        status: Status = "out of memory" if says_out_of_memory(reason) else "failed"
        if running.is_timed_out:
            status, reason = "timed out", f"stopped after {self.limits.seconds:g} seconds; its checkpoint is kept"
        lost = CellResult(cell_id=running.cell.cell_id, status=status, reason=reason)
        write_record(folder / "result.json", lost)

    def _stop_jobs(self) -> None:
        with _no_second_interrupt():
            for running in self.running.values():
                running.job.stop()
            deadline = time.monotonic() + STOP_SECONDS
            for running in self.running.values():
                while running.job.poll() is None and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS / 2)
                if running.job.poll() is None:
                    running.job.kill()
            self.engine.close()

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
        lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        return lines - 1 if lines and cell.pretraining is not None else lines  # the first is of epoch 0

    def _folder(self, cell: CellConfig) -> Path:
        return self.out / "cells" / cell.cell_id


def is_finished(out: Path, cell: CellConfig) -> bool:
    """Whether the study in `out` holds a result of the cell that stays."""
    path = out / "cells" / cell.cell_id / "result.json"
    return path.exists() and read_record(path, CellResult).is_final


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(outcome: int | str, log: Path) -> str:
    """Why a cell has no result: its exit, and the last line it printed."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    text = text[text.rfind("\n$ ") + 1 :]  # of the last start
    if found := first_failure(text):
        worker, code, last = found
        return f"worker {worker} {_ending(code)}{': ' if last else ''}{last}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = "" if not lines or lines[-1].startswith("$ ") else f": {lines[-1]}"
    return f"{outcome if isinstance(outcome, str) else _ending(outcome)}{last}"


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    perhaps = ", as the system does when memory is short" if code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{perhaps}"


@contextmanager
def _no_second_interrupt() -> Iterator[None]:
    """An impatient second Ctrl-C, SIGTERM, or a closed terminal must not leave children behind."""
    if threading.current_thread() is not threading.main_thread():  # no signal reaches us here
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
