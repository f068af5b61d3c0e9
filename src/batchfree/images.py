"""One image file, decoded and fitted to a square."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from batchfree.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "read_image"]

#: Files in a folder that are taken for images.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}

#: Ends a JPEG: a decoder that meets it early fills in what is missing instead of asking for more.
END_OF_JPEG = b"\xff\xd9"


def read_image(path: Path, image_size: int, *, mend_tail: bool = False) -> npt.NDArray[np.uint8]:
    """The image as (3, image_size, image_size) unsigned bytes.

    Args:
        image_size: shorter side after resizing (bilinear), and side of the square cut from the middle, in pixels.
        mend_tail: whether a JPEG that breaks off after its first pixels is taken, the rest filled in by the decoder.

    Raises:
        DataError: the file is no image, is damaged, or has more than 8 bits per channel.
    """
    try:
        content = path.read_bytes()
        try:
            return _decode(content, image_size)
        except OSError:
            # Pillow's own switch for this (LOAD_TRUNCATED_IMAGES) is global, and reaches everybody else's images too.
            if not mend_tail or not content.startswith(b"\xff\xd8"):
                raise
            return _decode(content + END_OF_JPEG, image_size)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as an image: {error}. Every image must decode whole, to 8 bits per channel. "
            f"Repair, convert or remove it."
        ) from error


def _decode(content: bytes, image_size: int) -> npt.NDArray[np.uint8]:
    # Decoded by content, not by name: PNG and GIF files named .jpg are common in published sets.
    with Image.open(io.BytesIO(content)) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are of mode {image.mode}, which 8 bits per channel would clip")
        upright = ImageOps.exif_transpose(image).convert("RGB")
        fitted = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(fitted).transpose(2, 0, 1)
