from __future__ import annotations

from pathlib import Path

import pytest

from batchfree.records import CellConfig
from batchfree.study import NormBatchSettings
from batchfree.study._data import ImageData, load_data


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits").take(160)


@pytest.fixture
def quick() -> NormBatchSettings:
    """A study of seconds: three epochs on 160 digits."""
    return NormBatchSettings(norms=("bn", "gn"), norm_batch=(32, 2), train_images=160, epochs=3, seeds=1)


@pytest.fixture
def cell(quick: NormBatchSettings, digits: ImageData) -> CellConfig:
    """Its first cell: Batch Norm at norm batch 32."""
    return quick.cells(digits)[0]


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of ten images that differ in colour, one of them a GIF named .jpg, as published sets have it."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for name, channel in (("blue", 2), ("red", 0)):
        (folder / name).mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 100, (20, 30, 3), dtype=np.uint8)
            pixels[:, :, channel] += 100
            kind = "GIF" if index == 0 else "PNG"
            Image.fromarray(pixels).save(folder / name / f"{index}.jpg", format=kind)
    return folder
