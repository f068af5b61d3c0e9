from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from batchfree.errors import DataError
from batchfree.study._data import FASHION_MNIST_FOLDER, ImageData, load_data, resolve_data


def write_fashion_mnist(folder: Path, train: int = 30, test: int = 20) -> None:
    """The four files in the published format: big-endian headers, 28x28 unsigned bytes, some gzipped."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        packed = struct.pack(">BBBB3I", 0, 0, 8, 3, count, 28, 28) + images.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(packed))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, count) + labels.tobytes())


def test_digits_are_the_published_ones() -> None:
    data = load_data("digits")
    assert data.train_images.shape == (1438, 1, 8, 8)
    assert data.validation_images.shape == (359, 1, 8, 8)
    assert data.train_images.dtype == torch.uint8
    assert int(data.train_images.max()) == 16
    assert sorted(set(data.train_labels.tolist())) == list(range(10))
    # the first scan of the set is a nought: a ring with an empty middle
    assert int(data.train_labels[0]) == 0
    assert data.train_images[0, 0, 3:5, 3:5].float().mean() < data.train_images[0, 0, 3:5, 2].float().mean()


def test_fashion_mnist_is_read_from_its_four_files(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    data = load_data("fashion-mnist", data_dir=str(tmp_path))
    assert data.train_images.shape == (30, 1, 28, 28)
    assert data.validation_labels.tolist() == [*range(10)] * 2
    assert data.classes[9] == "Ankle boot"


@pytest.mark.skipif(
    not FASHION_MNIST_FOLDER.exists(), reason="the Debian package dataset-fashion-mnist is not installed"
)
def test_the_debian_package_is_found_without_being_told() -> None:
    data = load_data("fashion-mnist")
    assert data.train_images.shape == (60000, 1, 28, 28)
    assert data.validation_images.shape == (10000, 1, 28, 28)
    assert torch.bincount(data.train_labels).tolist() == [6000] * 10


def test_a_missing_or_inconsistent_file_is_refused_with_the_way_to_get_it(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    labels.write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 29) + whole[8:-1])
    with pytest.raises(DataError, match="30 train images and 29 train labels"):
        load_data("fashion-mnist", data_dir=str(tmp_path))
    labels.write_bytes(whole[:-1] + b"\x0a")
    with pytest.raises(DataError, match="label of 10"):
        load_data("fashion-mnist", data_dir=str(tmp_path))
    labels.unlink()
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        load_data("fashion-mnist", data_dir=str(tmp_path))


def test_a_subset_is_the_same_every_time_and_from_all_over_the_set() -> None:
    data = load_data("digits")
    first, again = data.take(200), data.take(200)
    assert torch.equal(first.train_images, again.train_images)
    assert first.fingerprint() == again.fingerprint()
    assert len(set(first.train_labels.tolist())) == 10
    assert torch.equal(first.validation_images, data.validation_images)
    pool = {image.numpy().tobytes() for image in data.train_images}
    assert all(image.numpy().tobytes() in pool for image in first.train_images)


def test_more_images_than_there_are_are_refused() -> None:
    for count in (0, 1439):
        with pytest.raises(DataError, match="from 1 to 1438"):
            load_data("digits").take(count)


def test_the_fingerprint_sees_a_changed_pixel_a_changed_label_and_another_order(digits: ImageData) -> None:
    fingerprints = {digits.fingerprint()}
    for change in ("train_images", "train_labels", "validation_images", "validation_labels"):
        parts = {name: getattr(digits, name).clone() for name in digits.__dataclass_fields__ if name != "classes"}
        parts[change].view(-1)[0] += 1
        fingerprints.add(ImageData(**parts, classes=digits.classes).fingerprint())
    backwards = ImageData(
        digits.train_images.flip(0), digits.train_labels.flip(0), digits.validation_images, digits.validation_labels,
        digits.classes,
    )  # fmt: skip
    fingerprints.add(backwards.fingerprint())
    assert len(fingerprints) == 6


def test_standardised_training_images_have_mean_zero_and_deviation_one(digits: ImageData) -> None:
    images, validation = digits.standardised()
    assert images.dtype == validation.dtype == torch.float32
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std().item() == pytest.approx(1, abs=1e-4)
    pixels = digits.train_images.double()
    expected = (digits.validation_images - pixels.mean()) / pixels.std(correction=0)
    assert torch.allclose(validation.double(), expected, atol=1e-5)
    grey = torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)
    blank = ImageData(grey, torch.zeros(4), grey, torch.zeros(4), ("a", "b"))
    assert torch.equal(blank.standardised()[0], torch.zeros(4, 1, 2, 2))


def test_names_and_paths_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_data("digits") == "digits"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert resolve_data("photos") == str(tmp_path / "photos")
    with pytest.raises(DataError, match="Did you mean fashion-mnist"):
        resolve_data("fashion_mnist")
    with pytest.raises(DataError, match="not a folder"):
        resolve_data("some/where")


def test_settings_that_do_not_apply_are_refused(image_folder: Path) -> None:
    for arguments in (
        {"data": "digits", "data_dir": "/somewhere"},
        {"data": "digits", "image_size": 16},
        {"data": str(image_folder), "data_dir": "/somewhere"},
    ):
        with pytest.raises(DataError, match=r"Leave it out|Pass the path alone"):
            load_data(**arguments)


def test_a_folder_of_class_folders_is_read_at_the_size_asked_for(image_folder: Path) -> None:
    assert load_data(str(image_folder)).train_images.shape == (16, 3, 32, 32)
    assert load_data(str(image_folder), image_size=12).train_images.shape == (16, 3, 12, 12)
