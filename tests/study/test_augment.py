from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from batchfree.errors import StudyError
from batchfree.study._augment import AUGMENTATIONS, augment

CHANGING = [kind for kind in AUGMENTATIONS if kind != "none"]
INDICES = list(range(100, 112))


def pictures(side: int = 12, channels: int = 3, count: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def changed(images: Tensor, indices: list[int], kind: str, seed: int = 1, epoch: int = 2) -> Tensor:
    return augment(images, indices, kind=kind, image_size=None, seed=seed, epoch=epoch)


@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_changed_alike_whatever_its_batch_and_place(kind: str, channels: int) -> None:
    images = pictures(channels=channels)
    whole = changed(images, INDICES, kind)
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8
    backwards = changed(images.flip(0), INDICES[::-1], kind)
    assert torch.equal(backwards.flip(0), whole)
    alone = [changed(images[index : index + 1], INDICES[index : index + 1], kind) for index in (7, 3)]
    assert torch.equal(torch.cat(alone), whole[[7, 3]])
    torch.manual_seed(99)
    assert torch.equal(changed(images, INDICES, kind), whole)


@pytest.mark.parametrize("kind", CHANGING)
def test_seed_epoch_and_index_all_matter(kind: str) -> None:
    one = pictures(count=1).expand(12, -1, -1, -1)
    results = [
        changed(one, INDICES, kind),
        changed(one, INDICES, kind, epoch=3),
        changed(one, INDICES, kind, seed=2),
        changed(one, [index + 12 for index in INDICES], kind),
    ]
    for first in range(4):
        for second in range(first):
            assert not torch.equal(results[first], results[second])
    assert len({image.numpy().tobytes() for image in results[0]}) > 3


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_the_callers_random_numbers_and_images_stay_as_they_are(kind: str) -> None:
    images = pictures()
    before, state = images.clone(), torch.get_rng_state()
    changed(images, INDICES, kind)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("side", "size"), [(12, 12), (12, 8), (9, 12)])
def test_crop_and_flip_give_squares_out_of_the_image_with_a_black_border(side: int, size: int) -> None:
    images = pictures(side)
    border = 4 if size >= side else 0
    results = augment(images, INDICES, kind="crop-flip", image_size=size, seed=0, epoch=0)
    places = set()
    for image, result in zip(images.numpy(), results.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (border, border), (border, border)))
        room = range(side + 2 * border - size + 1)
        found = [
            (top, left, flipped)
            for top in room
            for left in room
            for flipped in (False, True)
            if np.array_equal(padded[:, top : top + size, left : left + size][:, :, :: -1 if flipped else 1], result)
        ]
        assert len(found) == 1
        places |= set(found)
    assert len(places) > 6
    assert {flipped for _, _, flipped in places} == {False, True}


def test_every_crop_is_about_as_likely() -> None:
    # a ramp tells where the crop was from: 9 x 9 places and 2 flips; 40 a place are 12 % of deviation
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[0, 0] = torch.arange(1, 17, dtype=torch.uint8).reshape(4, 4)
    results = augment(image.expand(1620, -1, -1, -1), range(1620), kind="crop-flip", seed=0, epoch=0)
    untouched = sum(torch.equal(result, image[0]) for result in results)
    flipped = sum(torch.equal(result, image[0].flip(2)) for result in results)
    # each of the 162 is expected 10 times; 1 and 25 are 3 deviations away and more
    assert 1 <= untouched <= 25
    assert 1 <= flipped <= 25


@pytest.mark.parametrize("size", [6, 12, 20])
def test_resized_crops_have_the_side_asked_for(size: int) -> None:
    results = augment(pictures(), INDICES, kind="resized-crop", image_size=size, seed=0, epoch=0)
    assert results.shape == (12, 3, size, size)


def test_colours_are_jittered_on_three_channels_alone() -> None:
    flat = torch.tensor([200, 120, 60], dtype=torch.uint8).reshape(1, 3, 1, 1).expand(12, 3, 8, 8)
    assert len({tuple(image[:, 0, 0].tolist()) for image in changed(flat, INDICES, "resized-crop")}) > 6
    assert changed(flat[:, :1], INDICES, "resized-crop").eq(200).all()


def test_the_blogs_erases_one_black_rectangle_in_about_half_of_the_images() -> None:
    images = pictures(side=16, count=1).expand(64, -1, -1, -1)
    results = changed(images, list(range(64)), "blog").numpy()
    plain, mirrored = images[0].numpy(), images[0].numpy()[:, :, ::-1]
    erased = 0
    for result in results:
        black = (result == 0).all(axis=0)
        assert any(np.array_equal(result[:, ~black], source[:, ~black]) for source in (plain, mirrored))
        if black.any():
            erased += 1
            rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
            assert black[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert 0.01 < black.mean() < 0.40
    assert 16 < erased < 48


def test_none_leaves_the_images_alone() -> None:
    images = pictures()
    assert torch.equal(augment(images, INDICES, kind="none", image_size=12, seed=0, epoch=0), images)


def test_what_cannot_be_made_is_refused() -> None:
    images = pictures()
    with pytest.raises(StudyError, match="Did you mean crop-flip"):
        changed(images, INDICES, "crop_flip")
    for kind, size in (("none", 8), ("blog", 16), ("crop-flip", 21), ("crop-flip", 0), ("resized-crop", 0)):
        with pytest.raises(StudyError, match=f"a side of {size}"):
            augment(images, INDICES, kind=kind, image_size=size, seed=0, epoch=0)
    with pytest.raises(StudyError, match="12 images and 11 indices"):
        changed(images, INDICES[1:], "none")
    assert changed(images[:0], [], "blog").shape == (0, 3, 12, 12)
