"""The engine and the limits that options ask for."""

from __future__ import annotations

import math
from pathlib import Path

from batchfree.errors import StudyError, unknown_name
from batchfree.study import Engine, Limits, LocalEngine, RayEngine, SlurmEngine, size_bytes

__all__ = ["build_engine", "limits_from"]

ENGINES = ("local", "ray", "slurm")
#: What Slurm is asked for where no --time-limit is given.
SLURM_MINUTES = 24 * 60


def limits_from(minutes: float | None, memory: str | None) -> Limits:
    """The limits of one start of a run."""
    if minutes is not None and not (minutes > 0 and math.isfinite(minutes)):
        raise StudyError(f"--time-limit {minutes} was given. It is a number of minutes above 0. Pass such a number.")
    return Limits(None if minutes is None else 60 * minutes, None if memory is None else size_bytes(memory))


def build_engine(
    out: Path,
    threads: int,
    limits: Limits,
    engine: str,
    jobs: int | None,
    ray_address: str | None,
    cpus_per_cell: int | None,
    gpus_per_cell: float,
    retries: int,
    slurm_partition: str | None,
    slurm_cluster: str,
) -> Engine:
    """The engine of that name.

    Args:
        out: the study's folder, on storage that every machine of the engine shares.
        threads: of one run.
    """
    if engine not in ENGINES:
        raise StudyError(unknown_name("engine", engine, ENGINES))
    if engine == "local":
        given = {"--ray-address": ray_address, "--cpus-per-cell": cpus_per_cell, "--slurm-partition": slurm_partition}
        for option, value in given.items():
            if value is not None:
                raise StudyError(
                    f"{option} {value} was given with --engine local, which has no use for it. Leave it out."
                )
        return LocalEngine(jobs, threads)
    if jobs is not None:
        raise StudyError(f"--jobs {jobs} was given with --engine {engine}, which queues runs itself. Leave it out.")
    if engine == "ray":
        return RayEngine(
            ray_address, cpus_per_cell=cpus_per_cell or threads, gpus_per_cell=gpus_per_cell, retries=retries
        )
    if slurm_cluster not in ("slurm", "local"):
        raise StudyError(unknown_name("--slurm-cluster", slurm_cluster, ("slurm", "local")))
    return SlurmEngine(
        out / "slurm",
        cluster="local" if slurm_cluster == "local" else "slurm",
        partition=slurm_partition,
        minutes=SLURM_MINUTES if limits.seconds is None else math.ceil(limits.seconds / 60) + 1,
        cpus_per_cell=cpus_per_cell or threads,
        gpus_per_cell=math.ceil(gpus_per_cell),
        memory_gb=None if limits.memory_bytes is None else limits.memory_bytes / 1024**3,
    )
