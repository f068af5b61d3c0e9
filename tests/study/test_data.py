from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from batchfree.errors import DataError
from batchfree.study._data import FASHION_MNIST_FOLDER, ImageData, load_data, resolve_data
from tests.closeness import assert_close
from tests.study.published import write_cifar10, write_fashion_mnist, write_pets


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


@pytest.mark.skipif(
    not FASHION_MNIST_FOLDER.exists(), reason="the Debian package dataset-fashion-mnist is not installed"
)
def test_the_debian_package_is_found_without_being_told() -> None:
    data = load_data("fashion-mnist")
    assert data.train_images.shape == (60000, 1, 28, 28)
    assert data.validation_images.shape == (10000, 1, 28, 28)
    assert torch.bincount(data.train_labels).tolist() == [6000] * 10


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


def test_channel_statistics_are_those_of_the_training_images_alone() -> None:
    rng = np.random.default_rng(0)
    colours = torch.from_numpy(rng.integers(0, 256, (20, 3, 5, 5), dtype=np.uint8))
    data = ImageData(colours[:10], torch.zeros(10), colours[10:], torch.zeros(10), ("a", "b"))
    mean, deviation = data.channel_statistics()
    pixels = colours[:10].numpy().astype(np.float64)
    assert_close(mean, pixels.mean(axis=(0, 2, 3)).reshape(1, 3, 1, 1))
    assert_close(deviation, pixels.std(axis=(0, 2, 3)).reshape(1, 3, 1, 1))
    grey = torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)
    blank = ImageData(grey, torch.zeros(4), grey, torch.zeros(4), ("a", "b"))
    assert blank.channel_statistics()[1].item() == 1  # nothing is divided by zero


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
        {"data": "digits", "download": True},
        {"data": "cifar10", "split": "official"},
        {"data": str(image_folder), "data_dir": "/somewhere"},
        {"data": str(image_folder), "split": "blog"},
    ):
        with pytest.raises(DataError, match="Leave it out"):
            load_data(**arguments)
    with pytest.raises(DataError, match="image size of 0"):
        load_data("digits", image_size=0)


def test_a_folder_of_class_folders_is_read_at_the_size_asked_for(image_folder: Path) -> None:
    assert load_data(str(image_folder)).train_images.shape == (16, 3, 32, 32)
    assert load_data(str(image_folder), image_size=12).train_images.shape == (16, 3, 12, 12)


@pytest.mark.parametrize("size", [5, 8, 20])
def test_digits_are_resized_as_pillow_does(size: int) -> None:
    data, small = load_data("digits"), load_data("digits", image_size=size)
    assert small.train_images.shape == (1438, 1, size, size)
    assert small.validation_images.shape == (359, 1, size, size)
    for index in (0, 1, 1437):
        image = Image.fromarray(data.train_images[index, 0].numpy())
        wanted = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(small.train_images[index, 0].numpy() - wanted).max() <= 1
    assert torch.equal(small.train_labels, data.train_labels)


def test_the_files_are_found_in_the_folder_given_or_below_it(tmp_path: Path) -> None:
    below = tmp_path / "somewhere" / "fashion-mnist"
    write_fashion_mnist(below)
    seen = {load_data("fashion-mnist", data_dir=str(place)).fingerprint() for place in (below, below.parent)}
    assert len(seen) == 1
    below.rename(tmp_path / "clothes")
    assert load_data("fashion-mnist", data_dir=str(tmp_path / "clothes")).fingerprint() in seen


def test_cifar10_is_read_whole_from_its_published_files(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar10(folder, records=10_000)
    data = load_data("cifar10", data_dir=str(tmp_path))
    assert data.train_images.shape == (50_000, 3, 32, 32)
    assert data.validation_images.shape == (10_000, 3, 32, 32)
    assert load_data("cifar10", data_dir=str(folder), image_size=4).train_images.shape == (50_000, 3, 4, 4)


def test_pets_are_read_at_the_size_and_split_asked_for(tmp_path: Path) -> None:
    write_pets(tmp_path / "oxford-iiit-pet")
    data = load_data("pets", data_dir=str(tmp_path), image_size=16)
    assert data.train_images.shape[1:] == (3, 16, 16)
    assert len(data.classes) == 37
    other = load_data("pets", data_dir=str(tmp_path), image_size=16, split="blog")
    assert len(other.train_images) != len(data.train_images)
    assert load_data("pets", data_dir=str(tmp_path / "oxford-iiit-pet")).train_images.shape[1:] == (3, 128, 128)
    with pytest.raises(DataError, match="Did you mean official"):
        load_data("pets", data_dir=str(tmp_path), split="oficial")


def test_no_image_is_in_both_halves_and_each_is_in_one() -> None:
    numbered = torch.arange(101)
    images = numbered.to(torch.uint8).reshape(-1, 1, 1, 1)
    data = ImageData(images, numbered, images[:5], numbered[:5], ("one",))
    halves = [set(data.take(half=half).train_labels.tolist()) for half in ("first", "second")]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(range(101))
    assert set(data.take(20, half="second").train_labels.tolist()) < halves[1]
    assert torch.equal(data.take(20, half="second").validation_images, data.validation_images)
    with pytest.raises(DataError, match="51 training images were asked for; the data set has 50"):
        data.take(51, half="first")


def test_images_are_turned_counter_clockwise_in_both_parts() -> None:
    data = load_data("digits").take(50)
    turned = data.rotated(90.0)
    assert torch.equal(turned.train_images, torch.rot90(data.train_images, dims=(2, 3)))
    assert torch.equal(turned.validation_images, torch.rot90(data.validation_images, dims=(2, 3)))
    assert turned.train_images.dtype == torch.uint8
    assert data.rotated(30.0).fingerprint() == data.rotated(30.0).fingerprint() != data.fingerprint()
    assert data.rotated(0.0) is data
