from __future__ import annotations

import struct
from pathlib import Path

import pytest

from batchfree.errors import DataError
from batchfree.study._fashion_mnist import read_fashion_mnist
from tests.study.published import write_fashion_mnist


def test_fashion_mnist_is_read_from_its_four_files(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    images, labels, classes = read_fashion_mnist(tmp_path)
    assert images[0].shape == (30, 1, 28, 28)
    assert labels[1].tolist() == [*range(10)] * 2
    assert classes[9] == "Ankle boot"


def test_a_missing_or_inconsistent_file_is_refused_with_the_way_to_get_it(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    labels.write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 29) + whole[8:-1])
    with pytest.raises(DataError, match="30 train images and 29 train labels"):
        read_fashion_mnist(tmp_path)
    labels.write_bytes(whole[:-1] + b"\x0a")
    with pytest.raises(DataError, match="label of 10"):
        read_fashion_mnist(tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        read_fashion_mnist(tmp_path)
