"""The images a study trains on and validates with, whole in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from batchfree.errors import DataError, unknown_name
from batchfree.study._idx import read_idx
from batchfree.study._image_folder import read_image_folder

__all__ = ["DATA_SETS", "ImageData", "load_data", "resolve_data"]

DEFAULT_IMAGE_SIZE = 32
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


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

    def take(self, train_images: int) -> ImageData:
        """With that many training images: the same ones every time, from all over the data set.

        Raises:
            DataError: fewer are there, or none were asked for.
        """
        available = len(self.train_images)
        if not 1 <= train_images <= available:
            raise DataError(
                f"{train_images} training images were asked for; the data set has {available}. "
                f"Pass a number from 1 to {available}, or leave it out for all of them."
            )
        chosen = torch.randperm(available, generator=torch.Generator().manual_seed(0))[:train_images]
        return replace(self, train_images=self.train_images[chosen], train_labels=self.train_labels[chosen])

    def fingerprint(self) -> str:
        """SHA-256 over every image and label, hence over their order too."""
        digest = hashlib.sha256()
        for part in (self.train_images, self.train_labels, self.validation_images, self.validation_labels):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    def standardised(self) -> tuple[Tensor, Tensor]:
        """Training and validation images as float32, with mean 0 and deviation 1 per channel over the training part."""
        means, deviations = [], []
        for channel in range(self.train_images.shape[1]):
            counts = torch.bincount(self.train_images[:, channel].flatten(), minlength=256).double()
            values = torch.arange(256, dtype=torch.float64)
            mean = (counts @ values) / counts.sum()
            means.append(mean)
            deviations.append(((counts @ (values - mean) ** 2) / counts.sum()).sqrt().clamp_min(1.0))  # may be blank
        mean, deviation = (torch.stack(part).float().reshape(1, -1, 1, 1) for part in (means, deviations))
        return (self.train_images - mean) / deviation, (self.validation_images - mean) / deviation


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


def load_data(data: str, *, data_dir: str | None = None, image_size: int | None = None) -> ImageData:
    """Reads a data set whole.

    Args:
        data: "digits", "fashion-mnist", or the path of a folder of class folders.
        data_dir: where the files of "fashion-mnist" lie; Debian's place where `None`.
        image_size: side in pixels that a folder's images are brought to, 32 where `None`; others keep their own.

    Raises:
        DataError: the data set is missing, damaged or unusable.
    """
    name = resolve_data(data)
    if name in DATA_SETS:
        if image_size is not None:
            raise DataError(
                f"an image size of {image_size} was given for {name}, whose images keep their own size. It is for a "
                f"folder of images. Leave it out."
            )
        return DATA_SETS[name](data_dir)
    if data_dir is not None:
        raise DataError(f"a data folder ({data_dir}) was given beside a path ({data}). Pass the path alone.")
    images, labels, classes = read_image_folder(Path(name), DEFAULT_IMAGE_SIZE if image_size is None else image_size)
    return _from_arrays(images, labels, classes)


def _digits(data_dir: str | None) -> ImageData:
    """1797 scans of 8x8 (UCI optical recognition of handwritten digits), every fifth one for validation."""
    from sklearn.datasets import load_digits  # takes a second, and other data sets do without

    if data_dir is not None:
        raise DataError(f"a data folder ({data_dir}) was given for digits, which come with scikit-learn. Leave it out.")
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    held_out = np.arange(len(images)) % 5 == 4
    return _from_arrays(
        (images[~held_out], images[held_out]),
        (labels[~held_out], labels[held_out]),
        tuple(str(digit) for digit in range(10)),
    )


def _fashion_mnist(data_dir: str | None) -> ImageData:
    """70,000 pictures of clothes, 28x28, 10,000 of them for validation (Xiao et al. 2017, arXiv 1708.07747)."""
    folder = FASHION_MNIST_FOLDER if data_dir is None else Path(data_dir)
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(read_idx(_idx_file(folder, f"{part}-images-idx3-ubyte"), dimensions=3)[:, None])
        labels.append(read_idx(_idx_file(folder, f"{part}-labels-idx1-ubyte"), dimensions=1).astype(np.int64))
        if len(images[-1]) != len(labels[-1]):
            raise DataError(
                f"{folder} has {len(images[-1])} {part} images and {len(labels[-1])} {part} labels. There must be one "
                f"label per image. Fetch the four files again, from one source."
            )
        if labels[-1].size and labels[-1].max() >= len(FASHION_MNIST_CLASSES):
            raise DataError(
                f"{folder} has a {part} label of {labels[-1].max()}. Fashion-MNIST has classes 0 to 9. "
                f"Check which data set this is."
            )
    return _from_arrays((images[0], images[1]), (labels[0], labels[1]), FASHION_MNIST_CLASSES)


def _idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise DataError(
        f"{folder} does not hold {name} or {name}.gz. Fashion-MNIST is four files, "
        f"{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte, plain or gzipped. Install the Debian package "
        f"(apt-get install dataset-fashion-mnist), or fetch them from the data set's page and pass their folder "
        f"with --data-dir."
    )


def _from_arrays(images: tuple[np.ndarray, ...], labels: tuple[np.ndarray, ...], classes: tuple[str, ...]) -> ImageData:
    # np.array copies: torch wants writable memory, and an IDX array views read-only bytes.
    train_images, validation_images = (torch.from_numpy(np.array(part)) for part in images)
    train_labels, validation_labels = (torch.from_numpy(np.array(part)) for part in labels)
    return ImageData(train_images, train_labels, validation_images, validation_labels, classes)


#: Data sets by name.
DATA_SETS: dict[str, Callable[[str | None], ImageData]] = {"digits": _digits, "fashion-mnist": _fashion_mnist}
