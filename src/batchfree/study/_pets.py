"""The Oxford-IIIT Pets (Parkhi et al. 2012): 37 breeds of cats and dogs, about 200 photos each.

Layout as published:

    oxford-iiit-pet/images/<Breed>_<number>.jpg        some are PNG or GIF files by content; .mat files lie among them
    oxford-iiit-pet/annotations/list.txt               every labelled image
    oxford-iiit-pet/annotations/{trainval,test}.txt    the same images in the official two parts
    a line: <Breed>_<number> CLASS-ID SPECIES BREED-ID  CLASS-ID from 1 to 37; lines that begin with # are comments
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from batchfree.errors import DataError, unknown_name
from batchfree.images import image_area, read_image

__all__ = ["PET_SPLITS", "pets_size", "read_pets"]

#: By class id: the published order, which is that of the alphabet without regard to case.
BREEDS = (
    "Abyssinian", "american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "Bengal", "Birman",
    "Bombay", "boxer", "British_Shorthair", "chihuahua", "Egyptian_Mau", "english_cocker_spaniel", "english_setter",
    "german_shorthaired", "great_pyrenees", "havanese", "japanese_chin", "keeshond", "leonberger", "Maine_Coon",
    "miniature_pinscher", "newfoundland", "Persian", "pomeranian", "pug", "Ragdoll", "Russian_Blue", "saint_bernard",
    "samoyed", "scottish_terrier", "shiba_inu", "Siamese", "Sphynx", "staffordshire_bull_terrier", "wheaten_terrier",
    "yorkshire_terrier",
)  # fmt: skip
PET_SPLITS = ("official", "blog")
LISTS = ("list.txt", "trainval.txt", "test.txt")
SHOWN_PROBLEMS = 5

Samples = dict[str, int]


def read_pets(
    folder: Path, image_size: int, split: str, stored_size: int | None = None
) -> tuple[tuple[npt.NDArray[np.uint8], ...], tuple[npt.NDArray[np.int64], ...], tuple[str, ...]]:
    """((training, validation) images, (training, validation) labels, class names).

    Args:
        folder: `oxford-iiit-pet`, which holds `images/` and `annotations/`.
        image_size: shorter side after resizing, and side of the square cut from the middle, in pixels.
        split: "official": trainval.txt trains and test.txt validates, in the files' order. "blog": all images of
            list.txt in the order of the SHA-256 of their names without suffix; of n, the last n // 5 validate: 1469 of
            the published 7349. (The blog kept 1475 of its 7378 files back, in the order in which its file system
            lists a folder. No two machines share that order; one by a hash is like it in all but that.)
        stored_size: the side of training images. Where it is given no square is cut: pictures of both parts are brought
            whole to theirs.

    Returns:
        Images as (n, 3, image_size, image_size) unsigned bytes; training images with stored_size where it is given. A
        JPEG whose end is damaged or missing is taken, its missing part filled in by the decoder: the published set
        holds two.

    Raises:
        DataError: no such split, an incomplete copy, a line that contradicts its file name, or an unreadable image.
    """
    parts = _parts(folder, split)
    sides = (stored_size or image_size, image_size)
    whole = stored_size is not None
    images = tuple(_read_images(folder, part, side, whole) for part, side in zip(parts, sides, strict=True))
    labels = tuple(np.array(list(part.values()), np.int64) for part in parts)
    return images, labels, tuple(name.replace("_", " ").title() for name in BREEDS)


def pets_size(folder: Path, split: str) -> tuple[int, int]:
    """How many training images `read_pets` gives, and the median of their photos' areas in pixels.

    Raises:
        DataError: as `read_pets`, for what the lists and the images' heads tell.
    """
    training, _ = _parts(folder, split)
    return len(training), int(median(image_area(_file(folder, name)) for name in training))


def _parts(folder: Path, split: str) -> tuple[Samples, Samples]:
    """(training, validation)."""
    if split not in PET_SPLITS:
        raise DataError(unknown_name("split", split, PET_SPLITS))
    everything, training, validation = _read_lists(folder)
    _check_images(folder, everything)
    if split == "blog":
        order = sorted(everything, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        count = len(order) - len(order) // 5
        training, validation = ({name: everything[name] for name in part} for part in (order[:count], order[count:]))
    return training, validation


def _read_lists(folder: Path) -> tuple[Samples, Samples, Samples]:
    """The images and labels of each list, found consistent."""
    annotations = folder / "annotations"
    missing = [name for name in LISTS if not (annotations / name).is_file()]
    if missing:
        raise DataError(
            f"{annotations} does not hold {', '.join(missing)}. The Oxford-IIIT Pets come as images.tar.gz and "
            f"annotations.tar.gz, both extracted into {folder.name}/. Extract annotations.tar.gz again, or remove the "
            f"folder and pass --download."
        )
    problems: list[str] = []
    everything, training, validation = (_read_list(annotations / name, problems) for name in LISTS)
    for name, part in (("trainval.txt", training), ("test.txt", validation)):
        if not part:
            problems.append(f"{name} lists no image")
    for name in sorted(training.keys() & validation.keys()):
        problems.append(f"{name} is in both trainval.txt and test.txt")
    for name in sorted(everything.keys() ^ (training.keys() | validation.keys())):
        where = "list.txt, but in neither trainval.txt nor test.txt" if name in everything else "list.txt in no line"
        problems.append(f"{name} is in {where}")
    if problems:
        raise DataError(
            f"{annotations} is damaged: {_some(problems)}. A line is `<Breed>_<number> CLASS-ID SPECIES BREED-ID`, "
            f"CLASS-ID from 1 to {len(BREEDS)} and the breed's own; list.txt is trainval.txt and test.txt together. "
            f"Extract annotations.tar.gz again."
        )
    return everything, training, validation


def _read_list(path: Path, problems: list[str]) -> Samples:
    samples: Samples = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        place = f"{path.name} line {number}"
        breed = fields[0].rpartition("_")[0]
        label = int(fields[1]) - 1 if len(fields) == 4 and fields[1].isascii() and fields[1].isdigit() else None
        if label is None:
            problems.append(f"{place} is {line[:60]!r}")
        elif not 0 <= label < len(BREEDS):
            problems.append(f"{place} has class {fields[1]}")
        elif BREEDS[label] != breed or not fields[0][len(breed) + 1 :].isdigit():
            problems.append(f"{place} names {fields[0]} with class {fields[1]}, which is {BREEDS[label]}")
        elif fields[0] in samples:
            problems.append(f"{place} names {fields[0]} again")
        else:
            samples[fields[0]] = label
    return samples


def _check_images(folder: Path, samples: Samples) -> None:
    images = folder / "images"
    there = {entry.name for entry in images.iterdir()} if images.is_dir() else set()
    absent = [f"{name}.jpg" for name in samples if f"{name}.jpg" not in there]
    if absent:
        raise DataError(
            f"{images} lacks {len(absent)} of the {len(samples)} images that list.txt names: {_some(absent)}. "
            f"It looks half extracted. Extract images.tar.gz again, or remove the folder and pass --download."
        )


def _read_images(folder: Path, samples: Samples, image_size: int, whole: bool) -> npt.NDArray[np.uint8]:
    images = np.empty((len(samples), 3, image_size, image_size), np.uint8)
    for index, name in enumerate(samples):
        images[index] = read_image(_file(folder, name), image_size, whole=whole, mend_tail=True)
    return images


def _file(folder: Path, name: str) -> Path:
    return folder / "images" / f"{name}.jpg"


def _some(problems: list[str]) -> str:
    rest = len(problems) - SHOWN_PROBLEMS
    return ", ".join(problems[:SHOWN_PROBLEMS]) + (f" and {rest} more" if rest > 0 else "")
