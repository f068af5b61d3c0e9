"""One writer for a folder at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from batchfree.errors import StudyError

__all__ = ["only_writer"]


@contextmanager
def only_writer(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Holds `folder`, made if it is not there, for one process.

    Raises:
        StudyError: another process holds it, and `seconds` later still; or it cannot be written.
    """
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
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
