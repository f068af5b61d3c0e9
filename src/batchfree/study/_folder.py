"""One writer for a folder at a time, and what becomes of it when the folder cannot be written."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from batchfree.errors import StudyError

__all__ = ["only_writer", "says_what_to_do_when_full"]

#: What a full, read-only or failing disk says.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)


@contextmanager
def only_writer(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Holds `folder`, made if it is not there, for one process; what a killed one had half written is removed.

    Raises:
        StudyError: another process holds it, and `seconds` later still; or it cannot be written.
    """
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
        for half_written in folder.glob(".*.tmp"):
            half_written.unlink()
    except filelock.Timeout:
        raise StudyError(
            f"another process is at work in {folder}. One writes a folder at a time. Wait for it, or "
            f"pass another --out."
        ) from None
    except OSError as error:
        raise StudyError(
            f"{folder} cannot be written ({error.strerror or error}). A folder on a disk with room is needed. "
            f"Pass another --out, or mend this one."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def says_what_to_do_when_full(folder: Path) -> Iterator[None]:
    """Turns the system's refusal to write into an error that a person can act on.

    Raises:
        StudyError: the disk is full, or `folder` cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise StudyError(
            f"{folder} cannot be written ({error.strerror or error}). What was written before is whole. "
            f"Make room, or make it writable, and give the same command again: it goes on from there."
        ) from error
