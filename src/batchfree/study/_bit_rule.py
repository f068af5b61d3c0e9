"""BiT's rule for fine-tuning: everything follows from the number of training images and their size.

Source: Kolesnikov et al. 2020 (arXiv 1912.11370), section 3.3, and the authors' `bit_hyperrule.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchfree.errors import ArgumentError

__all__ = ["BIT_BATCH", "BIT_LEARNING_RATE", "BIT_MOMENTUM", "BitRule", "bit_learning_rate", "bit_rule"]

BIT_BATCH = 512
BIT_LEARNING_RATE = 0.003
BIT_MOMENTUM = 0.9
#: From so many training images on a task counts as medium, and as large.
MEDIUM, LARGE = 20_000, 500_000


@dataclass(frozen=True)
class BitRule:
    """How BiT fine-tunes on one data set, with SGD of momentum 0.9 and batches of 512."""

    steps: int
    supports: tuple[int, ...]  #: warm-up ends at the first, the rate falls tenfold after each other, the last ends it
    resize: int  #: side in pixels before cropping
    crop: int  #: side of the random square that is trained on, and of the whole images that are validated on
    mixup_alpha: float  #: 0 where mixup is not used


def bit_rule(train_images: int, image_area: int) -> BitRule:
    """The rule for that many training images of that many pixels (height times width).

    >>> bit_rule(3680, 300 * 400)
    BitRule(steps=500, supports=(100, 200, 300, 400, 500), resize=512, crop=480, mixup_alpha=0.0)

    Raises:
        ArgumentError: a number below 1.
    """
    if train_images < 1 or image_area < 1:
        raise ArgumentError(
            f"{train_images} training images of {image_area} pixels were given. Both are at least 1. Pass their counts."
        )
    supports = _supports(train_images)
    resize, crop = (160, 128) if image_area < 96 * 96 else (512, 480)
    return BitRule(supports[-1], supports, resize, crop, mixup_alpha=0.0 if train_images < MEDIUM else 0.1)


def bit_learning_rate(step: int, train_images: int, base: float = BIT_LEARNING_RATE) -> float:
    """The learning rate of step `step`, counted from 0: linear from 0 to `base`, then a tenth after each support.

    Raises:
        ArgumentError: the step is not one of the rule's.
    """
    supports = _supports(train_images)
    if not 0 <= step < supports[-1]:
        raise ArgumentError(
            f"step {step} was given. For {train_images} training images BiT's rule has steps 0 to {supports[-1] - 1}. "
            f"Stop there."
        )
    if step < supports[0]:
        return base * step / supports[0]
    # "after": the authors' code compares with <, so the step of a support still has the rate before it
    return base / 10 ** sum(support < step for support in supports[1:])


def _supports(train_images: int) -> tuple[int, ...]:
    if train_images < MEDIUM:
        return (100, 200, 300, 400, 500)
    if train_images < LARGE:
        return (500, 3000, 6000, 9000, 10_000)
    return (500, 6000, 12_000, 18_000, 20_000)
