"""What runs a cell's process, here or elsewhere: the local engine, and what every engine offers."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from batchfree.errors import StudyError

__all__ = ["PARENT_VARIABLE", "Engine", "Job", "LocalEngine", "Task", "is_parent_gone"]

#: Tells a cell whose child it is: it stops, with a checkpoint, when that process is gone, however it went.
PARENT_VARIABLE = "BATCHFREE_STUDY_PID"


def is_parent_gone() -> bool:
    """Whether the process that `PARENT_VARIABLE` names has ended; `False` where it names none."""
    named = os.environ.get(PARENT_VARIABLE)
    if named is None:
        return False
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return os.getppid() != int(named)
    # torchrun's agent stands in between. It passes signals on, and does not see when its own parent ends.
    if os.name != "posix":
        return False
    try:
        os.kill(int(named), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


@dataclass(frozen=True)
class Task:
    """A process to run: its words, where its output is appended, and what its environment has on top."""

    words: Sequence[str]
    log: Path
    environment: Mapping[str, str]


class Job(Protocol):
    """A task that was started."""

    def poll(self) -> int | str | None:
        """`None` while it runs; then its exit code, -n after signal n, or why there is none."""

    def stop(self) -> None:
        """Asks it to write a checkpoint and end."""

    def kill(self) -> None:
        """Ends it, and waits until it is gone."""


class Engine(Protocol):
    """Where jobs run."""

    #: Cells at the same time; `None` where the engine queues them itself.
    slots: int | None

    def start(self, task: Task) -> Job:
        """Starts a process for `task`."""

    def close(self) -> None:
        """Gives back what the engine holds, once no job is left."""


class LocalEngine:
    """A subprocess per cell on this machine.

    Args:
        jobs: cells at the same time; as many as the cores hold at `threads` each where `None`.
    """

    slots: int | None

    def __init__(self, jobs: int | None, threads: int) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if jobs is not None and jobs < 1:
            raise StudyError(
                f"--jobs {jobs} was given. It must be at least 1. Leave it out for as many as the cores hold."
            )
        self.slots = max(1, cores // max(1, threads)) if jobs is None else jobs

    def start(self, task: Task) -> LocalJob:
        """Starts the process in a session of its own."""
        with open(task.log, "ab") as log:
            log.write(f"$ {shlex.join(task.words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                task.words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **task.environment, PARENT_VARIABLE: str(os.getpid())},
                start_new_session=True,  # Ctrl-C in the terminal reaches the study, which tells the cells to stop
            )
        return LocalJob(process)

    def close(self) -> None:
        """Nothing is held."""


class LocalJob:
    """A child process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._is_stopping = False

    def poll(self) -> int | None:
        """Its exit code, or -n after signal n."""
        return self._process.poll()

    def stop(self) -> None:
        """SIGTERM, once: a second one makes torchrun leave before its workers have written."""
        if not self._is_stopping:
            self._process.terminate()
        self._is_stopping = True

    def kill(self) -> None:
        """SIGKILL, to everything that it started too."""
        if hasattr(os, "killpg") and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
