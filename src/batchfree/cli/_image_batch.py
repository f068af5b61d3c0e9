"""Images of a folder as one batch that a network takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from batchfree.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["evenly", "read_image_batch", "standard_of"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def standard_of(model: str, mean: str | None, std: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel: as given, or those of the published weights; ImageNet's where nothing says more.

    Args:
        model: as in the command, and known to exist: timm is asked for what it publishes.

    Raises:
        ArgumentError: they are not one or three numbers each, or a deviation is not positive.
    """
    standard = _published_standard(model)
    given = tuple(
        _numbers(option, text) if text is not None else default
        for option, text, default in (("--mean", mean, standard[0]), ("--std", std, standard[1]))
    )
    if len(given[0]) != len(given[1]) or min(given[1]) <= 0:
        raise ArgumentError(
            f"--mean {given[0]} and --std {given[1]} were used. Both must have one number for grey images or three for "
            f"colour, and deviations are positive. Pass both."
        )
    return given[0], given[1]


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices, spread over `count` things.

    >>> evenly(10, 4)
    [0, 2, 5, 7]
    """
    chosen = min(count, wanted)
    return [index * count // chosen for index in range(chosen)]


def read_image_batch(
    folder: Path,
    count: int,
    size: int,
    standard: tuple[tuple[float, ...], tuple[float, ...]],
    on_progress: Callable[[int, int], None],
) -> Tensor:
    """(n, channels, size, size) float32, n being at most `count`, spread evenly over the folder's images by name.

    Raises:
        DataError: the folder is not there or holds no image, or one cannot be read.
    """
    import numpy as np
    import torch

    from batchfree.images import IMAGE_SUFFIXES, read_image

    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. A folder with images is needed. Check the path.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(
            f"{folder} holds no image. Some are needed, ending in {', '.join(sorted(IMAGE_SUFFIXES))}. Pass another."
        )
    chosen = [files[index] for index in evenly(len(files), count)]
    pixels = []
    for done, path in enumerate(chosen):
        pixels.append(read_image(path, size))
        on_progress(done + 1, len(chosen))
    images = torch.from_numpy(np.stack(pixels)).float() / 255
    mean, deviation = (torch.tensor(values).reshape(1, -1, 1, 1) for values in standard)
    if len(standard[0]) == 1:
        images = images.mean(1, keepdim=True)
    return (images - mean) / deviation


def _published_standard(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    library, _, name = model.partition(":")
    if library == "timm":
        import timm

        published = timm.get_pretrained_cfg(name)
        if published is not None:
            return tuple(published.mean), tuple(published.std)
    return IMAGENET


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise ArgumentError(
            f"{option} {text} was given. It is one number or three, by commas. Pass 0.5, or 0.5,0.4,0.4."
        )
    return values
