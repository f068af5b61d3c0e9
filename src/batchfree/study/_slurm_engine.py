"""Cells as Slurm jobs, by way of submitit."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Literal

from batchfree.errors import StudyError, require
from batchfree.study._engine import PARENT_VARIABLE, LocalEngine, Task
from batchfree.study._node_process import node_process

__all__ = ["SlurmEngine"]

#: What asks a job to stop: scancel and pre-emption; and submitit, before the time limit.
STOPPING_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")


class SlurmEngine:
    """A Slurm job per cell.

    The machines share storage under the same paths: the Python that runs here, batchfree, the data and the study's
    folder. A job that Slurm ends at its time limit, or to make room, writes a checkpoint first; `batchfree study retry`
    goes on from it.

    Args:
        folder: on that storage, for submitit's files; made when the first job is.
        cluster: "slurm", or "local" for processes on this machine by the same way, to try it out.
        partition: where jobs run; Slurm's default where `None`.
        minutes: of each job, at most.
        cpus_per_cell: cores of each job.
        gpus_per_cell: devices of each job, whole ones.
        memory_gb: of each job, in GiB; Slurm's default where `None`.

    Raises:
        MissingExtraError: submitit is not installed.
        StudyError: this machine has no Slurm, or a number is out of range.
    """

    slots: int | None

    def __init__(
        self,
        folder: Path,
        *,
        cluster: Literal["slurm", "local"] = "slurm",
        partition: str | None,
        minutes: int,
        cpus_per_cell: int,
        gpus_per_cell: int,
        memory_gb: float | None,
    ) -> None:
        if min(minutes, cpus_per_cell) < 1 or gpus_per_cell < 0 or (memory_gb is not None and memory_gb <= 0):
            raise StudyError(
                f"{minutes} minutes, {cpus_per_cell} CPUs, {gpus_per_cell} GPUs and {memory_gb} GiB per cell were "
                f"given. A job needs at least a minute and a CPU. Pass such numbers."
            )
        self._submitit: Any = require("submitit", "slurm")
        missing = [name for name in ("sbatch", "srun", "scancel") if shutil.which(name) is None]
        if cluster == "slurm" and missing:
            raise StudyError(
                f"Slurm was asked for, and this machine has no {missing[0]}. Its commands are needed where the study "
                f"starts. Start it on a login node of the cluster, or try it out here with --slurm-cluster local."
            )
        # Slurm queues; processes on this machine have no queue.
        self.slots = None if cluster == "slurm" else LocalEngine(None, cpus_per_cell).slots
        self._folder = folder
        self._cluster = cluster
        self._parameters: dict[str, Any] = {
            "name": "batchfree",
            "timeout_min": minutes,
            "cpus_per_task": cpus_per_cell,
        }
        if gpus_per_cell:
            self._parameters["gpus_per_node"] = gpus_per_cell
        if memory_gb is not None:
            self._parameters["mem_gb"] = memory_gb
        if partition is not None:
            self._parameters["slurm_partition"] = partition
        self._executor: Any = None

    def start(self, task: Task) -> SlurmJob:
        """Submits the job."""
        if self._executor is None:
            logging.getLogger("submitit").setLevel(logging.ERROR)
            self._executor = self._submitit.AutoExecutor(folder=str(self._folder.resolve()), cluster=self._cluster)
            self._executor.update_parameters(**self._parameters)
        numbers = [int(getattr(signal, name)) for name in STOPPING_SIGNALS]
        run = node_process(PARENT_VARIABLE, kills=False)  # several signals may announce the same end
        words, log = list(task.words), str(task.log.resolve())
        job = self._executor.submit(run, words, log, dict(task.environment), os.getcwd(), numbers)
        return SlurmJob(job, self._cluster)

    def close(self) -> None:
        """Nothing is held."""


class SlurmJob:
    """A job, queued or running on some node."""

    def __init__(self, job: Any, cluster: Literal["slurm", "local"]) -> None:
        self._job = job
        self._cluster = cluster

    def poll(self) -> int | str | None:
        """The process's exit code, -n after signal n; or what Slurm did. A lost node is seen within ten minutes."""
        if not self._job.done():
            return None
        error = self._job.exception()
        if error is None:
            outcome: int | str = self._job.result()
            return outcome
        return f"its job ended without a result ({self._job.state})"

    def stop(self) -> None:
        """SIGTERM to the process, on whatever node; a queued job does not start."""
        if self._cluster == "slurm":
            self._job.cancel(check=False)
        elif not self._job.done():
            os.kill(int(self._job.job_id), signal.SIGTERM)  # submitit's own process, which passes it on

    def kill(self) -> None:
        """SIGKILL; a process that outlives its job for a moment stops by itself."""
        if self._cluster == "slurm":
            words = ["scancel", "--signal=KILL", "--full", str(self._job.job_id)]
            subprocess.run(words, capture_output=True, check=False)
        else:
            self._job.cancel(check=False)
