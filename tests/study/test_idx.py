from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from batchfree.errors import DataError
from batchfree.study._idx import read_idx

VALUES = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
CONTENT = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 2, 3) + VALUES.tobytes()


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_values_come_back_plain_and_gzipped(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(CONTENT) if name.endswith(".gz") else CONTENT)
    np.testing.assert_array_equal(read_idx(path, 3), VALUES)


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("cut short", CONTENT[:-1]),
        ("too long", CONTENT + b"x"),
        ("header cut short", CONTENT[:10]),
        ("empty", b""),
        ("another magic", b"\x89PNG" + CONTENT[4:]),
        ("another number of dimensions", bytes([0, 0, 8, 1]) + CONTENT[4:]),
        ("another type", bytes([0, 0, 0x0D, 3]) + CONTENT[4:]),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, what: str, content: bytes) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        read_idx(path, 3)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(CONTENT)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[:-4], whole[:20], b"not gzip at all", bytes(flipped)):
        path = tmp_path / "images.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match="Fetch it again"):
            read_idx(path, 3)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "nothing", 3)
