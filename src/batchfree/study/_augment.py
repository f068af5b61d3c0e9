"""Random changes to training images, each a pure function of the seed, the epoch and the image's index.

What an image looks like does not depend on the batch it is in, on what was asked for before, or on whether the run was
killed in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from batchfree.errors import StudyError, unknown_name

__all__ = ["AUGMENTATIONS", "augment"]

AUGMENTATIONS = ("none", "crop-flip", "resized-crop", "blog")
#: Pixels added on each side before a crop (He et al. 2016, section 4.2).
PADDING = 4

Transform = Callable[[Tensor], Tensor]


def augment(
    images: Tensor, indices: Sequence[int], *, kind: str, image_size: int | None = None, seed: int, epoch: int
) -> Tensor:
    """The images as epoch `epoch` trains on them.

    Args:
        images: (n, c, h, w) unsigned bytes, c 1 or 3 for "resized-crop".
        indices: n numbers, at least 0: each image's own, wherever it is in the batch.
        kind: "none"; "crop-flip", a square of `image_size` from the image, padded by 4 black pixels on each side unless
            it is larger than that square, and a horizontal flip (He et al. 2016); "resized-crop", 8 to 100 % of the
            area at aspect ratios from 3/4 to 4/3 brought to `image_size`, a flip, and on three channels a jitter of
            brightness, contrast and saturation by 0.4 (the recipe of Wu & He 2018, without its lighting noise);
            "blog", a flip and, for half of the images, one erased rectangle of 2 to 33 % of the area (Zhong et al.
            2020), for the Cutout of the blog, which it also made on validation images.
        image_size: side in pixels of the result; the shorter side of the images where `None`. "none" and "blog" do
            not resize: they take no other than the images' own.
        seed, epoch: at least 0.

    Returns:
        (n, c, image_size, image_size) unsigned bytes; `images` itself for "none". torch's global random numbers stay
        where they are.

    Raises:
        StudyError: no such kind, or images that it does not take.
    """
    if kind not in AUGMENTATIONS:
        raise StudyError(unknown_name("augmentation", kind, AUGMENTATIONS))
    if len(indices) != len(images):
        raise StudyError(
            f"{len(images)} images and {len(indices)} indices were given. Each image has one. Pass as many."
        )
    height, width = images.shape[2:]
    size = min(height, width) if image_size is None else image_size
    _check_size(kind, height, width, size)
    if kind == "none" or len(images) == 0:
        return images
    transform = _transform(kind, size, padded=size >= min(height, width), channels=images.shape[1])
    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, index in zip(images, indices, strict=True):
            state = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)
            # not torch.manual_seed, which would seed the accelerators too
            torch.default_generator.manual_seed(int(state[0]))
            changed.append(transform(image))
    return torch.stack(changed)


def _check_size(kind: str, height: int, width: int, size: int) -> None:
    if kind in ("none", "blog"):
        fits = size == min(height, width)
    else:
        fits = size >= 1 and (kind == "resized-crop" or size <= min(height, width) + 2 * PADDING)
    if not fits:
        raise StudyError(
            f"a side of {size} was asked for from images of {height}x{width} with the augmentation {kind}. none and "
            f"blog keep the side, crop-flip adds at most {2 * PADDING} pixels, resized-crop makes any. Load the "
            f"images at that side, or pass another augmentation."
        )


def _transform(kind: str, size: int, *, padded: bool, channels: int) -> Transform:
    from torchvision.transforms import v2  # takes a second, and "none" does without

    flip = v2.RandomHorizontalFlip()
    if kind == "crop-flip":
        return v2.Compose([v2.RandomCrop(size, padding=PADDING if padded else None), flip])
    if kind == "blog":
        return v2.Compose([flip, v2.RandomErasing()])
    jitter = [v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)] if channels == 3 else []
    return v2.Compose([v2.RandomResizedCrop(size, antialias=True), flip, *jitter])
