"""Trains cells that are stopped and gone on with; run by torchrun, or called with a single worker."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file

from batchfree.records import CellConfig, read_record
from batchfree.study._arm import build_network
from batchfree.study._data import load_data
from batchfree.study._training import Training, TrainingFiles
from batchfree.study._workers import Workers

STEPS = 7  # of 18, in the second epoch


def train_all(folder: Path, workers: Workers) -> None:
    """Trains every cell in `folder` twice: to the end, and with a stop, for which the last worker alone asks."""
    for path in sorted(folder.glob("*.json")):
        config = read_record(path, CellConfig)
        whole, stopped = folder / path.stem / "whole", folder / path.stem / "stopped"
        _train(config, whole, workers, lambda: False)
        _train(config, stopped, workers, _last_worker_asks(workers))
        _train(config, stopped, workers, lambda: False)


def _last_worker_asks(workers: Workers) -> Callable[[], bool]:
    steps = itertools.count(1)
    return lambda: next(steps) >= STEPS and workers.rank == workers.count - 1


def _train(config: CellConfig, folder: Path, workers: Workers, should_stop: Callable[[], bool]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = load_data("digits").take(config.train_images)
    files = TrainingFiles(folder / "metrics.jsonl", folder / "checkpoint", 1e6)
    training = Training(config, files, data, build_network(config, data), workers, should_stop, time.perf_counter())
    result = training.finish()
    if workers.rank == 0:
        name = "stopped" if result is None else "weights"
        save_file(training.network.state_dict(), folder / f"{name}.safetensors")
    workers.wait()  # as at a process's end: no worker goes on before the checkpoint is whole


def _threads() -> list[str]:
    """Their names, on Linux; elsewhere none."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it ended meanwhile
            names.append(path.read_text().strip())
    return names


if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    with Workers(count) as workers:
        train_all(folder, workers)
    left = [name for name in _threads() if "gloo" in name]
    assert not left, f"threads that are not joined can abort the process while it ends: {left}"
