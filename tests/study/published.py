"""Small data sets in the layouts that they are published in."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: Breeds by class id, as a reduced set may hold them: cats, dogs, one word and several, upper and lower case.
PETS = {1: "Abyssinian", 2: "american_bulldog", 10: "British_Shorthair", 37: "yorkshire_terrier"}


def write_fashion_mnist(folder: Path, train: int = 30, test: int = 20) -> None:
    """The four files in the published format: big-endian headers, 28x28 unsigned bytes, some gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        packed = struct.pack(">BBBB3I", 0, 0, 8, 3, count, 28, 28) + images.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(packed))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, count) + labels.tobytes())


def write_cifar10(folder: Path, records: int) -> None:
    """The seven files: pixels are random in the first 20 images of each batch and 0 in the others."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        content = np.zeros((records, 3073), np.uint8)
        content[:20, 1:] = rng.integers(0, 256, (min(20, records), 3072))
        content[:, 0] = rng.integers(0, 10, records)
        content.tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_CLASSES) + "\n\n")


def write_pets(folder: Path, side: int = 16) -> None:
    """Six images of each of four breeds, half of them for training; some are not what their names say."""
    images, annotations = folder / "images", folder / "annotations"
    images.mkdir(parents=True)
    annotations.mkdir()
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"trainval": [], "test": []}
    for breed_number, (class_id, breed) in enumerate(PETS.items(), 1):
        for number in range(1, 7):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            kind = {1: "PNG", 2: "GIF"}.get(number, "JPEG")
            Image.fromarray(pixels).save(images / f"{breed}_{number}.jpg", format=kind)
            species = 1 if breed[0].isupper() else 2
            lines["trainval" if number % 2 else "test"].append(f"{breed}_{number} {class_id} {species} {breed_number}")
        (images / f"{breed}_100.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    for name, part in lines.items():
        (annotations / f"{name}.txt").write_text("\n".join(part) + "\n")
    header = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n"
    (annotations / "list.txt").write_text(header + "\n".join(lines["trainval"] + lines["test"]) + "\n")
