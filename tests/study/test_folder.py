from __future__ import annotations

import errno
import os
from pathlib import Path

import filelock
import pytest

from batchfree.errors import StudyError
from batchfree.study._folder import only_writer, says_what_to_do_when_full


def test_a_folder_is_made_and_held_until_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with only_writer(folder), pytest.raises(filelock.Timeout):
        filelock.FileLock(folder / ".lock").acquire(timeout=0)
    with only_writer(folder):
        pass


def test_what_a_killed_writer_had_half_written_is_removed_and_the_rest_stays(tmp_path: Path) -> None:
    for name in (".result.json.123.tmp", "result.json", "notes.tmp"):
        (tmp_path / name).write_text("")
    with only_writer(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.tmp", "result.json"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StudyError, match=r"file cannot be written .* Pass another --out"),
        only_writer(tmp_path / "file"),
    ):
        pass


def test_a_full_disk_is_named_with_what_to_do_and_other_errors_pass(tmp_path: Path) -> None:
    reason = os.strerror(errno.ENOSPC)
    with (
        pytest.raises(StudyError, match=rf"{reason}\)\. What was written before is whole\. Make room"),
        says_what_to_do_when_full(tmp_path),
    ):
        raise OSError(errno.ENOSPC, reason)
    with pytest.raises(ValueError, match="mine"), says_what_to_do_when_full(tmp_path):
        raise ValueError("mine")
