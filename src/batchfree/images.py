"""One image file, decoded and fitted to a square."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from batchfree.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "image_area", "read_image"]

#: Files in a folder that are taken for images.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}

#: What Pillow raises at a file that is no image, or a damaged one.
UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)

#: Ends a JPEG: a decoder that meets it early fills in what is missing instead of asking for more.
END_OF_JPEG = b"\xff\xd9"


def read_image(path: Path, image_size: int, *, whole: bool = False, mend_tail: bool = False) -> npt.NDArray[np.uint8]:
    """The image as (3, image_size, image_size) unsigned bytes.

    Args:
        image_size: shorter side after resizing (bilinear), and side of the square cut from the middle, in pixels.
        whole: bring the whole picture to that square instead, whatever its proportions.
        mend_tail: whether a JPEG that breaks off after its first pixels is taken, the rest filled in by the decoder.

    Raises:
        DataError: the file is no image, is damaged, or has more than 8 bits per channel.
    """
    try:
        content = path.read_bytes()
        try:
            return _decode(content, image_size, whole)
        except OSError:
            # Pillow's own switch for this (LOAD_TRUNCATED_IMAGES) is global, and reaches everybody else's images too.
            if not mend_tail or not content.startswith(b"\xff\xd8"):
                raise
            return _decode(content + END_OF_JPEG, image_size, whole)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def image_area(path: Path) -> int:
    """Height times width in pixels, from the head of the file.

    Raises:
        DataError: the file is no image.
    """
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read as an image: {error}. Every image must decode whole, to 8 bits per channel. "
        f"Repair, convert or remove it."
    )


def _decode(content: bytes, image_size: int, whole: bool) -> npt.NDArray[np.uint8]:
    # Decoded by content, not by name: PNG and GIF files named .jpg are common in published sets.
    with Image.open(io.BytesIO(content)) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are of mode {image.mode}, which 8 bits per channel would clip")
        upright = ImageOps.exif_transpose(image).convert("RGB")
        square = image_size, image_size
        bilinear = Image.Resampling.BILINEAR
        fitted = upright.resize(square, bilinear) if whole else ImageOps.fit(upright, square, bilinear)
    return np.asarray(fitted).transpose(2, 0, 1)
