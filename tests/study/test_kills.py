"""SIGKILL at any moment costs time and nothing else."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from batchfree.records import CellConfig
from batchfree.study import run_cell
from tests.study.forks import fork, in_fork
from tests.study.quick import cells_of, quick_study

#: What a disturbed cell must leave exactly as an undisturbed one; cost.json holds seconds.
KEPT = ("result.json", "metrics.jsonl", "config.json", "environment.json")


def tiny_cell() -> CellConfig:
    return cells_of(quick_study(norm="bn", norm_batch=8, train_images=64))[0]


def train(cell: CellConfig, folder: Path) -> int:
    """A checkpoint after every step; what is printed is not shown."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run_cell(cell, folder, checkpoint_seconds=0)
    return 0


def watch_files(folder: Path, on_event: Callable[[str], None]) -> None:
    """Calls `on_event` just before each opening, renaming and removal below `folder`, for the rest of the process."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.rename", "os.remove") and str(folder) in str(arguments[0]):
            on_event(f"{event} {Path(str(arguments[0])).name.replace(f'.{os.getpid()}', '')}")

    sys.addaudithook(hook)


def undisturbed(cell: CellConfig, folder: Path) -> tuple[list[str], float]:
    """The file events of a run that nothing disturbs, and its length in seconds."""
    events: list[str] = []
    watch_files(folder, events.append)
    began = time.monotonic()
    train(cell, folder)
    return events, time.monotonic() - began


def start_and_kill(cell: CellConfig, folder: Path, *, at_event: int | None, at_second: float | None) -> str | None:
    """One start that is killed; before which event, or when. `None`: it ended before."""
    said, says = os.pipe()

    def work() -> int:
        last = ["start"]
        left = [at_event]

        def on_event(name: str) -> None:
            last[0] = name
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    die()

        def die() -> None:
            os.write(says, last[0].encode())
            os.kill(os.getpid(), signal.SIGKILL)

        watch_files(folder, on_event)
        if at_second is not None:
            timer = threading.Timer(at_second, die)
            timer.daemon = True
            timer.start()
        return train(cell, folder)

    status = os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])
    os.close(says)
    with os.fdopen(said) as pipe:
        last = pipe.read()
    assert status in (0, -signal.SIGKILL), status
    return last if status else None


def survive(moments: int, seed: int, folder: Path) -> tuple[int, Counter[str]]:
    """Kills a cell at that many moments, each time starting it again until it is done.

    Returns:
        How many of the finished cells were as the undisturbed one, file for file; what was last touched at each kill.
    """
    cell = tiny_cell()
    rng = random.Random(seed)
    (events, seconds), kills, equal = in_fork(undisturbed, cell, folder / "whole"), Counter[str](), 0
    whole = {name: (folder / "whole" / name).read_bytes() for name in KEPT}
    names = {path.name for path in (folder / "whole").iterdir()}
    at_events = [rng.randrange(len(events)) for _ in range(moments // 2)]
    at_seconds = [rng.uniform(0, seconds) for _ in range(moments - moments // 2)]
    for moment, (at_event, at_second) in enumerate([(k, None) for k in at_events] + [(None, t) for t in at_seconds]):
        killed = folder / str(moment)
        while last := start_and_kill(cell, killed, at_event=at_event, at_second=at_second):
            kills[last] += 1
            at_event, at_second = rng.randrange(len(events)), None
        assert {path.name for path in killed.iterdir()} == names
        equal += {name: (killed / name).read_bytes() for name in KEPT} == whole
        shutil.rmtree(killed)
    return equal, kills


def assert_survives(moments: int, seed: int, folder: Path) -> Counter[str]:
    equal, kills = in_fork(survive, moments, seed, folder)
    assert equal == moments
    assert kills.total() >= moments * 3 // 4  # a moment drawn by time may come after the end
    return kills


def test_a_cell_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    assert_survives(6, 1, tmp_path)


@pytest.mark.long
def test_a_cell_killed_at_fifty_random_moments_ends_with_the_same_bytes_fifty_times(tmp_path: Path) -> None:
    kills = assert_survives(50, 0, tmp_path)
    # while a checkpoint is written, before it takes its place, and when an epoch was logged but not yet checkpointed
    assert kills["open .checkpoint.safetensors.tmp"]
    assert kills["os.rename .checkpoint.safetensors.tmp"]
    assert kills["os.rename checkpoint.safetensors"]
    assert kills["open metrics.jsonl"]
