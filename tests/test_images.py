from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from batchfree.errors import DataError
from batchfree.images import image_area, read_image


def test_a_cut_jpeg_is_mended_only_where_asked_and_nobody_elses_is(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    whole = read_image(path, 64)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="truncated"):
        read_image(path, 64)
    mended = read_image(path, 64, mend_tail=True)
    assert np.array_equal(mended[:, :40], whole[:, :40])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(path.read_bytes())).load()


def test_the_area_is_of_the_whole_picture_and_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.effect_noise((64, 20), 80).save(path)
    assert image_area(path) == 64 * 20
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read as an image"):
        image_area(path)


def test_a_cut_png_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 80).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=str(path)):
        read_image(path, 64, mend_tail=True)
