from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batchfree.errors import DataError
from batchfree.study._image_folder import read_image_folder


def test_every_fifth_image_of_a_class_is_held_out(image_folder: Path) -> None:
    (training, validation), (train_labels, validation_labels), classes = read_image_folder(image_folder, 8)
    assert classes == ("blue", "red")
    assert training.shape == (16, 3, 8, 8)
    assert validation.shape == (4, 3, 8, 8)
    assert train_labels.tolist() == [0] * 8 + [1] * 8
    assert validation_labels.tolist() == [0, 0, 1, 1]
    # blue images are blue, red ones red: labels and channels are where they belong
    assert (training[:8, 2].mean(axis=(1, 2)) > training[:8, 0].mean(axis=(1, 2)) + 50).all()
    assert (training[8:, 0].mean(axis=(1, 2)) > training[8:, 2].mean(axis=(1, 2)) + 50).all()


def test_images_are_fitted_to_the_middle_square(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200  # the middle square of a 30x10 image
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    (training, _), _, _ = read_image_folder(tmp_path, 10)
    assert (training == 200).all()


def test_train_and_validation_folders_are_taken_as_they_are(image_folder: Path, tmp_path: Path) -> None:
    split = tmp_path / "split"
    shutil.copytree(image_folder, split / "train")
    shutil.copytree(image_folder, split / "val")
    (split / "val" / "red" / "3.jpg").unlink()
    images, labels, _ = read_image_folder(split, 8)
    assert [len(part) for part in images] == [20, 19]
    assert [len(part) for part in labels] == [20, 19]
    shutil.rmtree(split / "val" / "red")
    with pytest.raises(DataError, match="one class"):
        read_image_folder(split, 8)
    shutil.rmtree(split / "val")
    with pytest.raises(DataError, match="none of val/"):
        read_image_folder(split, 8)


def test_train_and_validation_need_the_same_classes(image_folder: Path, tmp_path: Path) -> None:
    split = tmp_path / "split"
    shutil.copytree(image_folder, split / "train")
    shutil.copytree(image_folder, split / "val")
    (split / "val" / "red").rename(split / "val" / "green")
    with pytest.raises(DataError, match="green, red"):
        read_image_folder(split, 8)


def test_an_unreadable_image_is_refused_by_name(image_folder: Path) -> None:
    broken = image_folder / "red" / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=str(broken)):
        read_image_folder(image_folder, 8)
    broken.write_text("no image at all")
    with pytest.raises(DataError, match=str(broken)):
        read_image_folder(image_folder, 8)


def test_an_image_of_more_than_eight_bits_is_refused_rather_than_clipped(image_folder: Path) -> None:
    deep = image_folder / "red" / "4.png"
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(deep)
    with pytest.raises(DataError, match="would clip"):
        read_image_folder(image_folder, 8)


def test_an_image_bomb_is_refused(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="exceeds limit"):
        read_image_folder(image_folder, 8)


def test_a_photo_is_turned_the_way_its_camera_says(tmp_path: Path) -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[:5] = 250  # bright above
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png", exif=turned)
    (training, _), _, _ = read_image_folder(tmp_path, 10)
    assert (training[:, :, 6:] > 200).all()
    assert (training[:, :, :4] < 50).all()


def test_a_class_may_be_called_train(image_folder: Path) -> None:
    (image_folder / "red").rename(image_folder / "train")
    assert read_image_folder(image_folder, 8)[2] == ("blue", "train")


def test_a_folder_without_enough_classes_or_images_is_refused(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, pattern in (
        (tmp_path / "empty", "no class folder"),
        (tmp_path / "missing", "not a folder"),
        (image_folder / "red", "no class folder"),
    ):
        with pytest.raises(DataError, match=pattern):
            read_image_folder(folder, 8)
    shutil.rmtree(image_folder / "blue")
    with pytest.raises(DataError, match=r"one class folder \(red\)"):
        read_image_folder(image_folder, 8)
    (image_folder / "blue").mkdir()
    with pytest.raises(DataError, match="blue holds no image"):
        read_image_folder(image_folder, 8)
    shutil.copy(image_folder / "red" / "1.jpg", image_folder / "blue")
    with pytest.raises(DataError, match="blue has one image"):
        read_image_folder(image_folder, 8)
