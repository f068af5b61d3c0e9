"""Disks that are full or read-only: real ones, small, in memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from batchfree.errors import BatchfreeError, StudyError
from batchfree.records import CellConfig
from batchfree.study import Study, retry_study, run_cell, run_study
from tests.study.forks import ForkedEngine, command, fork, in_fork
from tests.study.mounts import mount_read_only, mount_small, own_mounts, unmount
from tests.study.quick import cells_of, numbers, quick_study

DISK_BYTES, PAGE = 8 << 20, 4096


def short_study() -> Study:
    return quick_study(norm="gn", train_images=64, epochs=2, seeds=2)


def leave_room(disk: Path, room_bytes: int) -> Path:
    """A file that fills `disk` up to that many bytes."""
    ballast = disk / "ballast"
    with open(ballast, "wb") as file:
        file.write(b"\0" * (DISK_BYTES - room_bytes))
    return ballast


def fill_under_a_cell(cell: CellConfig, rooms: list[tuple[int, float]], folder: Path) -> list[tuple[str, bool]]:
    """For each (room in bytes, seconds between checkpoints): how it went, and whether the second start mended all."""
    own_mounts()
    run_cell(cell, folder / "whole")
    kept = ("result.json", "metrics.jsonl", "config.json", "environment.json")
    whole = [(folder / "whole" / name).read_bytes() for name in kept]
    outcomes = []
    for room, checkpoint_seconds in rooms:
        disk = folder / "disk"
        mount_small(disk, DISK_BYTES)
        ballast = leave_room(disk, room)
        message = ""
        try:
            run_cell(cell, disk / "cell", checkpoint_seconds=checkpoint_seconds)
        except StudyError as error:
            message = str(error)
        is_unfinished = not (disk / "cell" / "result.json").exists()
        ballast.unlink()
        run_cell(cell, disk / "cell")
        same = [(disk / "cell" / name).read_bytes() for name in kept] == whole
        outcomes.append((message, same and is_unfinished))
        unmount(disk)
    return outcomes


def test_a_cell_whose_disk_fills_up_says_so_and_goes_on_to_the_same_bytes_once_there_is_room(tmp_path: Path) -> None:
    often, never = 0.0, 1e9
    checkpoint = 609_000
    rooms = [(0, never), (2 * PAGE, never), (3 * PAGE, never), (4 * PAGE, never)]  # configuration, log, cost, result
    rooms += [(checkpoint // 2, often), (checkpoint * 3 // 2, often)]  # the first checkpoint, the second
    outcomes = in_fork(fill_under_a_cell, cells_of(short_study())[0], rooms, tmp_path)
    for room, (message, is_mended) in zip(rooms, outcomes, strict=True):
        assert "No space left on device" in message, room
        assert "Make room" in message
        assert is_mended, room


def fill_under_a_study(rooms: list[int], folder: Path) -> list[tuple[str, bool]]:
    """For each room: what was said, and whether the second run mended all."""
    own_mounts()
    run_study(short_study(), folder / "whole", engine=ForkedEngine())
    outcomes = []
    for room in rooms:
        disk = folder / "disk"
        mount_small(disk, DISK_BYTES)
        ballast = leave_room(disk, room)
        try:
            said = "; ".join(
                f"{r.status}: {r.reason}" for r in run_study(short_study(), disk / "out", engine=ForkedEngine())
            )
        except BatchfreeError as error:
            said = str(error)
        ballast.unlink()
        run_study(short_study(), disk / "out", engine=ForkedEngine())
        outcomes.append((said, numbers(disk / "out") == numbers(folder / "whole")))
        unmount(disk)
    return outcomes


def test_a_study_whose_disk_fills_up_loses_nothing(tmp_path: Path) -> None:
    rooms = [0, 3 * PAGE, 5 * PAGE]
    for room, (said, is_mended) in zip(rooms, in_fork(fill_under_a_study, rooms, tmp_path), strict=True):
        assert "No space left on device" in said, room
        assert "Make room" in said
        assert is_mended, room


def run_command_on_a_full_disk(folder: Path) -> tuple[int, str]:
    own_mounts()
    mount_small(folder / "disk", DISK_BYTES)
    leave_room(folder / "disk", 0)
    words = ["study", "norm-batch", "--norms", "gn", "--out", str(folder / "disk" / "out")]
    child = fork(lambda: command(words, folder / "log.txt"))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, (folder / "log.txt").read_text()


def test_the_command_answers_a_full_disk_with_one_message_and_its_exit_status(tmp_path: Path) -> None:
    status, printed = in_fork(run_command_on_a_full_disk, tmp_path)
    assert status == 2
    assert printed.startswith(f"Error: {tmp_path / 'disk' / 'out'} cannot be written (No space left on device).")
    assert "the same command again" in printed
    assert "Traceback" not in printed


def run_on_a_read_only_disk(read_only: str, folder: Path) -> tuple[str, bool, bool]:
    """What is said; whether the finished cell was left alone; whether all is there once it can be written."""
    own_mounts()
    whole, out = folder / "whole", folder / "out"
    run_study(short_study(), whole, engine=ForkedEngine())
    shutil.copytree(whole, out)
    second = sorted(path.name for path in (out / "cells").iterdir())[1]
    shutil.rmtree(out / "cells" / second)
    before = numbers(out)
    mount_read_only(out / read_only)
    said = ""
    try:
        retry_study(out, engine=ForkedEngine())
    except StudyError as error:
        said = str(error)
    left_alone = numbers(out) == before
    unmount(out / read_only)
    retry_study(out, engine=ForkedEngine())
    return said, left_alone, numbers(out) == numbers(whole)


@pytest.mark.parametrize("read_only", ["", "cells"])
def test_a_read_only_folder_is_named_and_goes_on_once_it_can_be_written(read_only: str, tmp_path: Path) -> None:
    said, left_alone, is_mended = in_fork(run_on_a_read_only_disk, read_only, tmp_path)
    assert "out cannot be written (Read-only file system)" in said
    assert left_alone
    assert is_mended
