"""CIFAR-10 from its published binary files.

Format (the data set's page, "binary version"): records of one label byte and 3 x 32 x 32 pixel bytes, red, green, blue,
each by rows; 10,000 records in each of the six files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from batchfree.errors import DataError

__all__ = ["read_cifar10"]

SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32
TRAINING_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
VALIDATION_FILE = "test_batch.bin"
NAMES_FILE = "batches.meta.txt"
CLASS_COUNT = 10


def read_cifar10(
    folder: Path, *, records_per_file: int = 10_000
) -> tuple[tuple[npt.NDArray[np.uint8], ...], tuple[npt.NDArray[np.int64], ...], tuple[str, ...]]:
    """((training, validation) images, (training, validation) labels, class names).

    Args:
        folder: `cifar-10-batches-bin`.
        records_per_file: images in each of the six files.

    Returns:
        Images as (n, 3, 32, 32) unsigned bytes.

    Raises:
        DataError: a file is missing, cut short or damaged, or the folder holds the pickled version.
    """
    missing = [name for name in (*TRAINING_FILES, VALIDATION_FILE, NAMES_FILE) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} does not hold {', '.join(missing)}. CIFAR-10 is {len(TRAINING_FILES) + 2} files here, those of "
            f"the archive cifar-10-binary.tar.gz{_pickled_note(folder)}. Extract that archive again, or remove the "
            f"folder and pass --download."
        )
    parts = [_read_file(folder / name, records_per_file) for name in (*TRAINING_FILES, VALIDATION_FILE)]
    images = (np.concatenate([images for images, _ in parts[:-1]]), parts[-1][0])
    labels = (np.concatenate([labels for _, labels in parts[:-1]]), parts[-1][1])
    return images, labels, _class_names(folder / NAMES_FILE)


def _pickled_note(folder: Path) -> str:
    pickled = (folder / "data_batch_1").is_file() or (folder / "batches.meta").is_file()
    return " (these are the pickled ones of cifar-10-python.tar.gz, which can run code and are not read)" * pickled


def _read_file(path: Path, records: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    size = path.stat().st_size
    if size != records * RECORD_BYTES:
        raise DataError(
            f"{path} has {size} bytes, which is {size / RECORD_BYTES:.2f} images. It must have {records} images of "
            f"{RECORD_BYTES} bytes, {records * RECORD_BYTES}. It was cut short or is another file: extract the "
            f"archive again."
        )
    content = np.fromfile(path, np.uint8).reshape(records, RECORD_BYTES)
    labels = content[:, 0].astype(np.int64)
    if labels.max() >= CLASS_COUNT:
        index = int(np.argmax(labels >= CLASS_COUNT))
        raise DataError(
            f"{path} gives image {index} the label {labels[index]}. CIFAR-10 has classes 0 to {CLASS_COUNT - 1}. "
            f"Check which data set this is, or extract the archive again."
        )
    return content[:, 1:].reshape(-1, *SHAPE), labels


def _class_names(path: Path) -> tuple[str, ...]:
    names = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    if len(set(names)) != CLASS_COUNT:
        raise DataError(
            f"{path} names {len(set(names))} classes. CIFAR-10 has {CLASS_COUNT}, one name a line. "
            f"Extract the archive again."
        )
    return names
