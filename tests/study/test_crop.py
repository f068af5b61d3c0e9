"""What the network sees of training images that are held larger: windows of these, and validation images whole."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from batchfree.errors import DataError
from batchfree.records import CellConfig
from batchfree.study import run_cell
from batchfree.study._arm import NetworkImages, build_network
from batchfree.study._data import ImageData, load_data
from batchfree.study._training import Training, TrainingFiles
from batchfree.study._workers import Workers
from tests.study.quick import cells_of, quick_study, stop_after

STORED, SEEN = 160, 128


@pytest.fixture
def coordinates() -> ImageData:
    """Images whose channels are row and column; validation images are some other picture."""
    rows, columns = torch.meshgrid(torch.arange(STORED), torch.arange(STORED), indexing="ij")
    one = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    labels = torch.arange(12) % 2
    random = torch.randint(0, 256, (4, 3, SEEN, SEEN), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageData(one.expand(12, -1, -1, -1), labels, random, labels[:4], ("a", "b"))


def pixels(seen: list[Tensor], data: ImageData) -> np.ndarray:
    """What a network was given, as bytes again."""
    mean, deviation = data.channel_statistics()
    return (torch.cat(seen) * deviation + mean).round().to(torch.int64).numpy()


def test_the_network_sees_windows_of_what_is_stored_and_validation_images_whole(
    coordinates: ImageData, tmp_path: Path
) -> None:
    values = {"stored_size": STORED, "image_size": SEEN, "augment": "crop-flip", "norm": ["gn"]}
    (quick,) = cells_of(quick_study(norm=["gn"]))
    update = {"sgd_batch": 6, "train_images": 12, "validation_images": 4, "epochs": 2, "norm": "gn"}
    cell = CellConfig.model_validate({**quick.model_dump(), **values, **update})
    network = build_network(cell, coordinates)
    training: list[Tensor] = []
    validation: list[Tensor] = []
    network.register_forward_pre_hook(
        lambda module, inputs: (training if module.training else validation).append(inputs[0])
    )
    files = TrainingFiles(tmp_path / "metrics.jsonl", tmp_path / "checkpoint", 1e6)
    Training(cell, files, coordinates, network, Workers(1), lambda: False, time.perf_counter()).finish()

    seen = pixels(training, coordinates)
    assert seen.shape == (24, 3, SEEN, SEEN)
    corners = set()
    for rows, columns, _ in seen:
        top, is_flipped = rows[0, 0], columns[0, 0] > columns[0, -1]
        left = columns[0, -1] if is_flipped else columns[0, 0]
        assert 0 <= top <= STORED - SEEN
        assert 0 <= left <= STORED - SEEN
        across = np.arange(left, left + SEEN)[:: -1 if is_flipped else 1]
        assert (rows == np.arange(top, top + SEEN)[:, None]).all()
        assert (columns == across[None]).all()
        corners.add((int(top), int(left), bool(is_flipped)))
    assert len(corners) > 18
    assert {is_flipped for _, _, is_flipped in corners} == {False, True}
    assert (pixels(validation[-1:], coordinates) == coordinates.validation_images.numpy()).all()


def test_training_images_without_a_crop_are_whole(coordinates: ImageData) -> None:
    (quick,) = cells_of(quick_study(norm=["gn"]))
    cell = quick.model_copy(update={"stored_size": STORED, "image_size": SEEN, "augment": "crop-flip"})
    whole = pixels([NetworkImages(cell, coordinates).training(slice(2))], coordinates)  # as for statistics anew
    assert whole.shape == (2, 3, SEEN, SEEN)
    place = (np.arange(SEEN) + 0.5) * STORED / SEEN - 0.5
    assert np.abs(whole[0, 0] - place[:, None]).max() <= 1
    assert np.abs(whole[0, 1] - place[None]).max() <= 1


def test_data_is_held_at_both_sides() -> None:
    from torchvision.transforms.v2.functional import resize

    native, data = load_data("digits"), load_data("digits", image_size=12, stored_size=15)
    assert torch.equal(data.train_images, resize(native.train_images, [15, 15], antialias=True))
    assert torch.equal(data.validation_images, resize(native.validation_images, [12, 12], antialias=True))


@pytest.mark.parametrize(("image_size", "stored_size"), [(None, 15), (12, 0), (12, -1), (12, 12), (12, 8)])
@pytest.mark.parametrize("data", ["digits", "folder"])
def test_a_stored_size_that_nothing_is_cropped_from_is_refused(
    image_size: int | None, stored_size: int, data: str, image_folder: Path
) -> None:
    where = data if data == "digits" else str(image_folder)
    with pytest.raises(
        DataError, match=f"stored size of {stored_size} was given with an image size of {image_size}.*Pass an"
    ):
        load_data(where, image_size=image_size, stored_size=stored_size)


def test_pictures_are_brought_whole_to_both_sides(image_folder: Path) -> None:
    data = load_data(str(image_folder), image_size=12, stored_size=15)
    assert (data.train_images.shape, data.validation_images.shape) == ((16, 3, 15, 15), (4, 3, 12, 12))
    for images, side, index in ((data.train_images, 15, 0), (data.validation_images, 12, 4)):
        with Image.open(image_folder / "blue" / f"{index}.jpg") as picture:  # 20 x 30: the square in its middle is less
            expected = picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        assert (images[0].permute(1, 2, 0).numpy() == np.asarray(expected)).all()


@pytest.mark.parametrize("steps", [2, 7, 12])  # 12: the last of all, before the short epoch is validated
def test_a_run_with_crop_and_mixup_goes_on_to_the_same_bytes(tmp_path: Path, steps: int) -> None:
    sizes = {"stored_size": 10, "image_size": 8, "augment": "crop-flip"}
    # five steps an epoch; the third ends after two
    (cell,) = cells_of(quick_study(norm=["bn"], norm_batch=[4], mixup=0.4, epochs="default", max_steps=12, **sizes))
    run_cell(cell, tmp_path / "whole")
    torch.rand(3)
    assert run_cell(cell, tmp_path / "stopped", stop_after(steps)) is None
    run_cell(cell, tmp_path / "stopped")
    for name in ("result.json", "metrics.jsonl", "config.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
