"""Cells as Ray tasks, on the machines of a Ray cluster or on this one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batchfree.errors import StudyError, require
from batchfree.study._engine import PARENT_VARIABLE, Task
from batchfree.study._node_process import node_process

__all__ = ["RayEngine"]

#: Until a machine has taken a connection, and until Ray has answered on it; ray.init itself waits for ever.
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 30.0
#: Until a killed task is gone.
KILL_SECONDS = 10.0


class RayEngine:
    """A Ray task per cell; Ray queues them, and runs one again elsewhere when its node is lost.

    The machines share storage under the same paths: the Python that runs here, batchfree, the data and the study's
    folder. A cell that moves to another node goes on from its checkpoint there.

    Args:
        address: of a running cluster ("auto", or host:port of its head). `None`: the one that RAY_ADDRESS names, else
            an instance on this machine that ends with the study.
        cpus_per_cell: what Ray sets aside for a cell; it does not pin threads, which the cell does itself.
        gpus_per_cell: the same; a fraction shares a device.
        retries: how often a cell is started again whose node or Ray worker was lost. One that ends by itself, whatever
            the exit code, is not.

    Raises:
        MissingExtraError: Ray is not installed.
        StudyError: no cluster answers at `address`, or a number is out of range.
    """

    slots: int | None = None

    def __init__(
        self, address: str | None, *, cpus_per_cell: float, gpus_per_cell: float = 0, retries: int = 3
    ) -> None:
        if cpus_per_cell <= 0 or gpus_per_cell < 0 or retries < 0:
            raise StudyError(
                f"{cpus_per_cell:g} CPUs and {gpus_per_cell:g} GPUs per cell and {retries} retries were given. A cell "
                f"needs some CPU, and the others are not negative. Pass for instance --cpus-per-cell 1."
            )
        self._ray: Any = require("ray", "ray")
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            with _kept_signal_handlers():
                _connect(self._ray, address or os.environ.get("RAY_ADDRESS"))
        # Ray raises KeyboardInterrupt in a task that is cancelled, by way of SIGINT's handler.
        self._run = self._ray.remote(node_process(PARENT_VARIABLE, kills=True)).options(
            name="batchfree cell", num_cpus=cpus_per_cell, num_gpus=gpus_per_cell, max_retries=retries
        )

    def start(self, task: Task) -> RayJob:
        """Queues the task."""
        words, log = list(task.words), str(task.log.resolve())
        reference = self._run.remote(words, log, dict(task.environment), os.getcwd(), [int(signal.SIGINT)])
        return RayJob(self._ray, reference)

    def close(self) -> None:
        """Leaves the cluster; an instance of our own ends."""
        if self._is_ours:
            with _kept_signal_handlers():
                self._ray.shutdown()


class RayJob:
    """A task, queued or running on some node."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray = ray
        self._reference = reference

    def poll(self) -> int | str | None:
        """The process's exit code, -n after signal n; or why there is none, Ray's retries included."""
        if not self._is_over(0):
            return None
        try:
            outcome: int | str = self._ray.get(self._reference)
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()
            return f"Ray lost it ({type(error).__name__}{': ' if said else ''}{said[0] if said else ''})"
        return outcome

    def stop(self) -> None:
        """SIGTERM to the process, on whatever node; a queued task does not start.

        By Ray's own cancelling, which reaches the node at once; a file on shared storage may be seen a minute late.
        """
        self._ray.cancel(self._reference)

    def kill(self) -> None:
        """SIGKILL to the process, then to Ray's worker."""
        self.stop()
        if not self._is_over(KILL_SECONDS):
            self._ray.cancel(self._reference, force=True)
            self._is_over(KILL_SECONDS)

    def _is_over(self, seconds: float) -> bool:
        ready, _ = self._ray.wait([self._reference], timeout=seconds)
        return bool(ready)


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address in (None, "local"):
        # Ray listens on every interface all the same; since 2.60 it asks whoever connects for a token.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(address="local", _node_ip_address="127.0.0.1", include_dashboard=False, **quiet)
        except (RuntimeError, OSError) as error:
            raise StudyError(
                f"Ray does not start on this machine ({error}). It needs some 300 MB and its folder /tmp/ray. Make "
                f"room, pass --ray-address of a cluster, or leave --engine ray out."
            ) from error
        return
    assert address is not None
    if reason := _silence(address):
        raise StudyError(
            f"no Ray cluster answers at {address} ({reason}). A running one is needed. Start its head with "
            f"`ray start --head`, or leave the address out to try on this machine."
        )
    ray.init(address=address, **quiet)


def _silence(address: str) -> str:
    """Why no cluster answers at `address`; empty where one does. Asked by a process that can be ended."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            return str(error.strerror or error)
    asking = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", asking, address], capture_output=True, text=True, timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"what listens there did not answer within {ANSWER_SECONDS:g} seconds"
    said = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (said[-1] if said else f"exit code {done.returncode}")


@contextmanager
def _kept_signal_handlers() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts, and the study's own handler writes checkpoints."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
