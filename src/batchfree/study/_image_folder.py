"""A folder of class folders, read whole into memory at one size."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from batchfree.errors import DataError
from batchfree.images import IMAGE_SUFFIXES, image_area, read_image

__all__ = ["image_folder_size", "read_image_folder"]

VALIDATION_FOLDERS = ("val", "validation", "valid", "test")
#: Without a validation folder, every fifth image of a class, by name, is one.
VALIDATION_EVERY = 5

Files = list[tuple[Path, int]]


def read_image_folder(
    folder: Path, image_size: int, stored_size: int | None = None
) -> tuple[tuple[npt.NDArray[np.uint8], ...], tuple[npt.NDArray[np.int64], ...], tuple[str, ...]]:
    """((training, validation) images, (training, validation) labels, class names).

    Args:
        folder: `<class>/<image>`, or `train/<class>/<image>` with `val/`, `validation/`, `valid/` or `test/` beside it.
        image_size: shorter side after resizing, and side of the square cut from the middle, in pixels.
        stored_size: the side of training images. Where it is given no square is cut: pictures of both parts are brought
            whole to theirs.

    Returns:
        Images as (n, 3, image_size, image_size) unsigned bytes; training images with stored_size where it is given.

    Raises:
        DataError: no such folder, fewer than two classes, a class without enough images, or an unreadable image.
    """
    parts, classes = _parts(folder)
    sides = (stored_size or image_size, image_size)
    images = tuple(_read(files, side, stored_size is not None) for files, side in zip(parts, sides, strict=True))
    labels = tuple(np.array([label for _, label in files], np.int64) for files in parts)
    return images, labels, tuple(classes)


def image_folder_size(folder: Path) -> tuple[int, int]:
    """How many training images `read_image_folder` gives, and the median of their pictures' areas in pixels.

    Raises:
        DataError: as `read_image_folder`, for what the images' heads tell.
    """
    (training, _), _ = _parts(folder)
    return len(training), int(median(image_area(path) for path, _ in training))


def _parts(folder: Path) -> tuple[tuple[Files, Files], list[str]]:
    """((training, validation) files, class names)."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. A folder of class folders is needed. Check the path.")
    training = folder / "train"
    if training.is_dir() and any(entry.is_dir() for entry in training.iterdir()):  # else a class of that name
        validation = next((folder / name for name in VALIDATION_FOLDERS if (folder / name).is_dir()), None)
        if validation is None:
            raise DataError(
                f"{folder} has train/ but none of {', '.join(name + '/' for name in VALIDATION_FOLDERS)} beside it. "
                f"Either both are there, or neither. Add one, or pass {training}."
            )
        classes = _class_names(training)
        if (others := _class_names(validation)) != classes:
            odd = sorted(set(classes) ^ set(others))
            raise DataError(
                f"{training} and {validation} do not have the same class folders: {', '.join(odd)} are in one only. "
                f"Both need the same classes. Add or remove these."
            )
        return (_files(training, classes), _files(validation, classes)), classes
    classes = _class_names(folder)
    return _split(_files(folder, classes), classes), classes


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        found = f"one class folder ({names[0]})" if names else "no class folder"
        raise DataError(
            f"{folder} holds {found}. At least two are needed: <class>/<image>, the folder's name is the class. "
            f"Pass the folder above the class folders."
        )
    return names


def _files(folder: Path, classes: list[str]) -> Files:
    files: Files = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(
                f"{folder / name} holds no image. Each class needs some, ending in "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}. Add images or remove the folder."
            )
        files += [(path, label) for path in found]
    return files


def _split(files: Files, classes: list[str]) -> tuple[Files, Files]:
    training: Files = []
    validation: Files = []
    for label, name in enumerate(classes):
        of_class = [file for file in files if file[1] == label]
        if len(of_class) < 2:
            raise DataError(
                f"class {name} has one image ({of_class[0][0]}). It needs at least 2, one to train and one to "
                f"validate. Add images, or make train/ and val/ folders."
            )
        held_out = of_class[VALIDATION_EVERY - 1 :: VALIDATION_EVERY] or of_class[-1:]
        validation += held_out
        training += [file for file in of_class if file not in held_out]
    return training, validation


def _read(files: Files, image_size: int, whole: bool) -> npt.NDArray[np.uint8]:
    images = np.empty((len(files), 3, image_size, image_size), np.uint8)
    for index, (path, _) in enumerate(files):
        images[index] = read_image(path, image_size, whole=whole)
    return images
