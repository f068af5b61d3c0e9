from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batchfree.errors import DataError
from batchfree.study._cifar10 import read_cifar10
from tests.study.published import CIFAR10_CLASSES, write_cifar10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar10(folder, records=4)
    return folder


def test_each_byte_is_where_the_format_puts_it(folder: Path) -> None:
    images, labels, classes = read_cifar10(folder, records_per_file=4)
    assert images[0].shape == (20, 3, 32, 32)
    assert images[1].shape == (4, 3, 32, 32)
    assert classes == CIFAR10_CLASSES
    raw = (folder / "data_batch_3.bin").read_bytes()
    # the second image of the third file is the tenth of all: its label, then red, green, blue, each by rows
    record = raw[3073 : 2 * 3073]
    assert labels[0][9] == record[0]
    for channel, row, column in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2, 31, 31)):
        assert images[0][9, channel, row, column] == record[1 + channel * 1024 + row * 32 + column]
    last = (folder / "test_batch.bin").read_bytes()
    assert labels[1].tolist() == [last[0], last[3073], last[6146], last[9219]]


def test_a_missing_file_is_named_with_the_way_to_get_it(folder: Path) -> None:
    (folder / "data_batch_2.bin").unlink()
    (folder / "batches.meta.txt").unlink()
    with pytest.raises(DataError, match=r"does not hold data_batch_2\.bin, batches\.meta\.txt.*--download"):
        read_cifar10(folder, records_per_file=4)


def test_the_pickled_version_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "batches.meta").write_bytes(b"cos\nsystem\n(S'touch unpickled'\ntR.")
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz.*pickled.*not read"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("size", [0, 3073 * 3, 3073 * 4 - 1, 3073 * 5])
def test_a_file_of_another_length_is_refused(folder: Path, size: int) -> None:
    path = folder / "data_batch_5.bin"
    path.write_bytes((path.read_bytes() * 2)[:size])
    with pytest.raises(DataError, match=rf"data_batch_5\.bin has {size} bytes"):
        read_cifar10(folder, records_per_file=4)


def test_a_label_above_nine_is_refused_by_place(folder: Path) -> None:
    content = np.fromfile(folder / "test_batch.bin", np.uint8)
    content[2 * 3073] = 10
    content.tofile(folder / "test_batch.bin")
    with pytest.raises(DataError, match=r"test_batch\.bin gives image 2 the label 10"):
        read_cifar10(folder, records_per_file=4)


def test_ten_class_names_are_needed(folder: Path) -> None:
    (folder / "batches.meta.txt").write_text("airplane\nbird\n")
    with pytest.raises(DataError, match="names 2 classes"):
        read_cifar10(folder, records_per_file=4)
