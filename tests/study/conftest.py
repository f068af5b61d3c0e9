from __future__ import annotations

from pathlib import Path

import pytest

from batchfree.records import CellConfig
from batchfree.study import Study
from batchfree.study._data import ImageData, load_data
from tests.study.quick import cells_of, quick_study


@pytest.fixture(scope="session")
def digits() -> ImageData:
    return load_data("digits").take(160)


@pytest.fixture
def quick() -> Study:
    """Batch Norm at norm batch 32 and 2, and Group Norm."""
    return quick_study()


@pytest.fixture
def cell(quick: Study) -> CellConfig:
    """Its first cell: Batch Norm at norm batch 32."""
    return cells_of(quick)[0]


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
