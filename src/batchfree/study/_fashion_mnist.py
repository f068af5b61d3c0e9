"""Fashion-MNIST from its four IDX files (Xiao et al. 2017, arXiv 1708.07747)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from batchfree.errors import DataError
from batchfree.study._idx import read_idx

__all__ = ["read_fashion_mnist"]

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_fashion_mnist(
    folder: Path,
) -> tuple[tuple[npt.NDArray[np.uint8], ...], tuple[npt.NDArray[np.int64], ...], tuple[str, ...]]:
    """((training, validation) images (n, 1, 28, 28), (training, validation) labels, class names).

    Raises:
        DataError: a file is missing, damaged, or does not fit the others.
    """
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(read_idx(_idx_file(folder, f"{part}-images-idx3-ubyte"), dimensions=3)[:, None])
        labels.append(read_idx(_idx_file(folder, f"{part}-labels-idx1-ubyte"), dimensions=1).astype(np.int64))
        if len(images[-1]) != len(labels[-1]):
            raise DataError(
                f"{folder} has {len(images[-1])} {part} images and {len(labels[-1])} {part} labels. There must be one "
                f"label per image. Fetch the four files again, from one source."
            )
        if labels[-1].size and labels[-1].max() >= len(CLASSES):
            raise DataError(
                f"{folder} has a {part} label of {labels[-1].max()}. Fashion-MNIST has classes 0 to 9. "
                f"Check which data set this is."
            )
    return tuple(images), tuple(labels), CLASSES


def _idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise DataError(
        f"{folder} does not hold {name} or {name}.gz. Fashion-MNIST is four files, "
        f"{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte, plain or gzipped. Install the Debian package "
        f"(apt-get install dataset-fashion-mnist), pass --download, or fetch them from the data set's page and pass "
        f"their folder with --data-dir."
    )
