"""The images a study trains on and validates with, whole in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from batchfree.errors import DataError, unknown_name
from batchfree.records import Half
from batchfree.study._cifar10 import read_cifar10
from batchfree.study._download import SOURCES, cache_folder, fetch
from batchfree.study._fashion_mnist import read_fashion_mnist
from batchfree.study._image_folder import image_folder_size, read_image_folder
from batchfree.study._pets import pets_size, read_pets

__all__ = ["DATA_SETS", "ImageData", "data_size", "load_data", "resized", "resolve_data"]

#: Names that `load_data` knows; everything else is a path.
DATA_SETS = ("digits", "fashion-mnist", "cifar10", "pets")
#: Sides in pixels where none is asked for, of the data sets whose images have none of their own.
FOLDER_IMAGE_SIZE = 32
PETS_IMAGE_SIZE = 128
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
AT_ONCE = 1000

#: ((training, validation) images, (training, validation) labels, class names)
Parts = tuple[tuple[npt.NDArray[np.uint8], ...], tuple[npt.NDArray[np.int64], ...], tuple[str, ...]]


@dataclass(frozen=True)
class ImageData:
    """Labelled images in a training and a validation part.

    Images are (n, channels, height, width) unsigned bytes, labels (n,) 64-bit integers below `len(classes)`.
    """

    train_images: Tensor
    train_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    classes: tuple[str, ...]

    def take(
        self, train_images: int | None = None, validation_images: int | None = None, *, half: Half | None = None
    ) -> ImageData:
        """With that many images of each part: the same ones every time, from all over it; all of them where `None`.

        The training images come in a random order, always the same: folders and published lists are sorted by class.

        Args:
            half: of the training images in that order, from which they are taken; no image is in both.

        Raises:
            DataError: fewer are there, or none were asked for.
        """
        order = _random_order(len(self.train_images))
        if half is not None:
            middle = len(order) // 2
            order = order[:middle] if half == "first" else order[middle:]
        train = _first("training", order, len(order) if train_images is None else train_images)
        validation: Tensor | slice = slice(None)
        if validation_images is not None and validation_images != len(self.validation_images):
            validation = _first("validation", _random_order(len(self.validation_images)), validation_images)
        return replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            validation_images=self.validation_images[validation],
            validation_labels=self.validation_labels[validation],
        )

    def rotated(self, degrees: float) -> ImageData:
        """With every image of both parts turned counter-clockwise about its middle (bilinear), corners black."""
        if not degrees:
            return self
        from torchvision.transforms.v2 import InterpolationMode  # takes a second, and most studies do without
        from torchvision.transforms.v2.functional import rotate

        def turn(images: Tensor) -> Tensor:
            return torch.cat([rotate(part, degrees, InterpolationMode.BILINEAR) for part in _in_parts(images)])

        return replace(self, train_images=turn(self.train_images), validation_images=turn(self.validation_images))

    def fingerprint(self) -> str:
        """SHA-256 over every image and label, hence over their order too."""
        digest = hashlib.sha256()
        for part in (self.train_images, self.train_labels, self.validation_images, self.validation_labels):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel over the training part, as (1, channels, 1, 1) float32."""
        means, deviations = [], []
        for channel in range(self.train_images.shape[1]):
            counts = torch.bincount(self.train_images[:, channel].flatten(), minlength=256).double()
            values = torch.arange(256, dtype=torch.float64)
            mean = (counts @ values) / counts.sum()
            means.append(mean)
            deviations.append(((counts @ (values - mean) ** 2) / counts.sum()).sqrt().clamp_min(1.0))  # may be blank
        mean, deviation = (torch.stack(part).float().reshape(1, -1, 1, 1) for part in (means, deviations))
        return mean, deviation


def _random_order(images: int) -> Tensor:
    return torch.randperm(images, generator=torch.Generator().manual_seed(0))


def _first(part: str, order: Tensor, count: int) -> Tensor:
    available = len(order)
    if not 1 <= count <= available:
        raise DataError(
            f"{count} {part} images were asked for; the data set has {available}. "
            f"Pass a number from 1 to {available}, or leave it out for all of them."
        )
    return order[:count]


def _in_parts(images: Tensor) -> Sequence[Tensor]:
    """What resizing and turning compute with takes more room than bytes."""
    return torch.split(images, AT_ONCE)


def resolve_data(data: str) -> str:
    """The name of a data set as it is, a path as an absolute one.

    Raises:
        DataError: neither a known name nor a folder.
    """
    if data in DATA_SETS:
        return data
    if Path(data).is_dir():
        return str(Path(data).resolve())
    if any(separator in data for separator in "/\\") or data in (".", ".."):
        raise DataError(f"{data} is not a folder. A folder of class folders is needed. Check the path.")
    raise DataError(unknown_name("data set", data, DATA_SETS) + " A path to a folder of class folders works too.")


def load_data(
    data: str,
    *,
    data_dir: str | None = None,
    image_size: int | None = None,
    stored_size: int | None = None,
    split: str | None = None,
    download: bool = False,
) -> ImageData:
    """Reads a data set whole.

    Args:
        data: "digits", "fashion-mnist", "cifar10", "pets", or the path of a folder of class folders.
        data_dir: where the files of the three middle ones lie: the folder of their published name (`fashion-mnist`,
            `cifar-10-batches-bin`, `oxford-iiit-pet`) or the one that holds it. Where `None`, Debian's place for
            "fashion-mnist", then `$XDG_CACHE_HOME/batchfree`.
        image_size: side in pixels that the images are brought to (bilinear, with antialiasing). Where `None`, 128 for
            "pets", 32 for a folder; the others keep their own.
        stored_size: side in pixels that training images are brought to instead, from which `image_size` is cropped
            later. Pictures of "pets" and folders, both parts, are then brought whole to their side; otherwise the
            square in their middle is.
        split: "official" (where `None`) or "blog", for "pets" alone; see `read_pets`.
        download: fetch the published files to that place if their folder is not there.

    Raises:
        DataError: the data set is missing, damaged or unusable, or a setting does not apply to it.
    """
    name = resolve_data(data)
    if image_size is not None and image_size < 1:
        raise DataError(f"an image size of {image_size} was given. It is a side in pixels, at least 1. Pass another.")
    if stored_size is not None and (image_size is None or stored_size <= image_size):
        raise DataError(
            f"a stored size of {stored_size} was given with an image size of {image_size}. The images that the network "
            f"sees are cropped from larger ones. Pass an image size of at least 1 below it, or leave stored_size out."
        )
    if split is not None and name != "pets":
        raise DataError(f"a split ({split}) was given for {data}. Only pets have more than one. Leave it out.")
    if name not in SOURCES and (data_dir is not None or download):
        given = f"a data folder ({data_dir})" if data_dir is not None else "the wish to download"
        whose = "digits, which come with scikit-learn" if name == "digits" else f"the path {data}"
        raise DataError(f"{given} was given beside {whose}. They need no other place. Leave it out.")
    if name == "digits":
        return _brought_to(_from_parts(_digits()), image_size, stored_size)
    if name not in SOURCES:
        return _from_parts(read_image_folder(Path(name), image_size or FOLDER_IMAGE_SIZE, stored_size))
    folder = _published_folder(name, data_dir, download)
    if name == "pets":
        return _from_parts(read_pets(folder, image_size or PETS_IMAGE_SIZE, split or "official", stored_size))
    read = {"fashion-mnist": read_fashion_mnist, "cifar10": read_cifar10}[name]
    return _brought_to(_from_parts(read(folder)), image_size, stored_size)


def data_size(
    data: str, *, data_dir: str | None = None, split: str | None = None, download: bool = False
) -> tuple[int, int]:
    """How many training images a data set has, and their area in pixels as published: of photos, the median.

    Args, Raises: as `load_data`.
    """
    name = resolve_data(data)
    if name == "pets":
        return pets_size(_published_folder(name, data_dir, download), split or "official")
    if name not in DATA_SETS:
        return image_folder_size(Path(name))
    images = load_data(data, data_dir=data_dir, split=split, download=download).train_images
    return len(images), images.shape[2] * images.shape[3]


def _published_folder(name: str, data_dir: str | None, download: bool) -> Path:
    """The folder with the published files, fetched if it is not there and that was asked for."""
    published = SOURCES[name].folder
    parent = cache_folder() if data_dir is None else Path(data_dir).expanduser()
    places = [parent / published]
    if data_dir is not None and (
        parent.name == published or (name == "fashion-mnist" and any(parent.glob("*-ubyte*")))
    ):
        places.insert(0, parent)
    if name == "fashion-mnist" and data_dir is None:
        places.append(FASHION_MNIST_FOLDER)
    for place in places:
        if place.is_dir():
            return place
    if download:
        return fetch(name, parent.parent if parent.name == published else parent)
    debian = "install the Debian package (apt-get install dataset-fashion-mnist), " if name == "fashion-mnist" else ""
    raise DataError(
        f"{name} is not there: no folder {' or '.join(map(str, places))}. Its published files are needed: "
        f"{', '.join(address for address, _ in SOURCES[name].files)}. Pass --download to fetch them, {debian}or pass "
        f"the folder that holds {published} with --data-dir."
    )


def _digits() -> Parts:
    """1797 scans of 8x8 (UCI optical recognition of handwritten digits), every fifth one for validation."""
    from sklearn.datasets import load_digits  # takes a second, and other data sets do without

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    held_out = np.arange(len(images)) % 5 == 4
    return (
        (images[~held_out], images[held_out]),
        (labels[~held_out], labels[held_out]),
        tuple(str(digit) for digit in range(10)),
    )


def _from_parts(parts: Parts) -> ImageData:
    images, labels, classes = parts
    # Copied only where read-only or strided, as views of a file's bytes are: torch wants writable memory.
    train_images, validation_images = (torch.from_numpy(np.require(part, requirements=["C", "W"])) for part in images)
    train_labels, validation_labels = (torch.from_numpy(np.require(part, requirements=["C", "W"])) for part in labels)
    return ImageData(train_images, train_labels, validation_images, validation_labels, classes)


def _brought_to(data: ImageData, image_size: int | None, stored_size: int | None) -> ImageData:
    if image_size is None:
        return data
    return replace(
        data,
        train_images=resized(data.train_images, stored_size or image_size),
        validation_images=resized(data.validation_images, image_size),
    )


def resized(images: Tensor, side: int) -> Tensor:
    """The whole images (n, c, h, w) as squares of that side in pixels (bilinear, with antialiasing)."""
    if images.shape[2:] == (side, side):
        return images
    from torchvision.transforms.v2.functional import resize  # takes a second, and most studies do without

    return torch.cat([resize(part, [side, side], antialias=True) for part in _in_parts(images)])
