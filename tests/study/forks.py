"""Processes that need not import torch, for the tests that end a process: forked from one that only imported it."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from batchfree.study import PARENT_VARIABLE
from batchfree.study._engine import Task

T = TypeVar("T")

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pytest", "torch", "sklearn.datasets", "batchfree.cli", "batchfree.report"])


def in_fork(function: Callable[..., T], *arguments: object) -> T:
    """What `function` returns in a process of its own, which may fork on; its exceptions come back too."""
    with ProcessPoolExecutor(1, mp_context=_FORKS) as pool:
        return pool.submit(function, *arguments).result()


def fork(work: Callable[[], int]) -> int:
    """A child that does `work` and ends with its exit code, as Python would end; its process id."""
    pid = os.fork()
    if pid == 0:
        _end_with(work)
    return pid


def command(words: list[str], log: Path) -> int:
    """Does in this process what `python -m batchfree WORDS` does; prints to the end of `log`; its exit code."""
    from batchfree.__main__ import main

    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
    sys.argv = ["batchfree", *words]
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@dataclass
class ForkedEngine:
    """Runs each cell's own command as the local engine does, but forks; use it inside `in_fork`.

    `sabotage` is called in the cell's process before the command.
    """

    slots: int | None = 1
    sabotage: Callable[[Task], None] = lambda _: None

    def start(self, task: Task) -> ForkedJob:
        with open(task.log, "ab") as log:
            log.write(f"$ {shlex.join(task.words)}\n".encode())
        study = os.getpid()

        def work() -> int:
            os.setsid()
            os.environ.update({**task.environment, PARENT_VARIABLE: str(study)})
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            self.sabotage(task)
            return command(list(task.words)[task.words.index("batchfree") + 1 :], task.log)

        return ForkedJob(fork(work))

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class ForkedJob:
    pid: int
    outcome: int | None = None

    def poll(self) -> int | None:
        if self.outcome is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.outcome = os.waitstatus_to_exitcode(status) if pid else None
        return self.outcome

    def stop(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.outcome = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _end_with(work: Callable[[], int]) -> NoReturn:
    code = 1
    try:
        code = work()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
    raise AssertionError
