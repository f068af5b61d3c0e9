"""Reading the IDX files of the MNIST family, plain or gzipped.

Format (LeCun's MNIST page): two zero bytes, the type (0x08: unsigned byte), the number of dimensions, each size as a
big-endian 32-bit integer, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batchfree.errors import DataError

__all__ = ["read_idx"]

UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in `path`, which must have that many `dimensions`.

    Raises:
        DataError: the file cannot be read, is cut short, is damaged, or is no such array.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read: {error}. It must be a whole IDX file, plain or gzipped. Fetch it again."
        ) from error
    expected_magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    header_size = 4 + 4 * dimensions
    if content[:4] != expected_magic or len(content) < header_size:
        raise DataError(
            f"{path} begins with the bytes {content[:4].hex(' ') or '(none)'}. An IDX file of {dimensions}-dimensional "
            f"unsigned bytes begins with {expected_magic.hex(' ')}. Check which file this is, or fetch it again."
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header_size])
    size = len(content) - header_size
    if size != math.prod(shape):
        raise DataError(
            f"{path} holds {size} values where its header says {' x '.join(map(str, shape))} = {math.prod(shape)}. "
            f"It was cut short or damaged. Fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)
