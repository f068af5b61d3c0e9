"""How far two networks agree: on the class with the largest score, and on the outputs as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from batchfree.convert._batches import tensors_in

__all__ = ["Agreement", "class_scores"]

SCORE_NAMES = ("out", "logits")


@dataclass
class Agreement:
    """Sums over batches of outputs."""

    predictions: int = 0
    equal_predictions: int = 0
    squared_difference: float = 0.0
    squared_size: float = 0.0
    is_comparable: bool = True

    def add(self, wanted: Any, given: Any) -> None:
        """Takes in one batch: the outputs of the original, and those of the converted network."""
        old_scores, new_scores = class_scores(wanted), class_scores(given)
        if old_scores is not None and new_scores is not None and old_scores.shape == new_scores.shape:
            equal = old_scores.argmax(1) == new_scores.argmax(1)
            self.predictions += equal.numel()
            self.equal_predictions += int(equal.sum())
        old, new = ([value for value in tensors_in(output) if value.is_floating_point()] for output in (wanted, given))
        if not old or [value.shape for value in old] != [value.shape for value in new]:
            self.is_comparable = False
            return
        for a, b in zip(old, new, strict=True):
            self.squared_difference += float((a.double() - b.double()).square().sum())
            self.squared_size += float(a.double().square().sum())

    @property
    def top1(self) -> float | None:
        """Share of equal predictions; `None` where the outputs are no class scores."""
        return self.equal_predictions / self.predictions if self.predictions else None

    @property
    def relative_error(self) -> float | None:
        """Size of the difference over the size of the original's outputs; `None` where their shapes differ."""
        if not self.is_comparable or self.squared_size == 0:
            return None
        return math.sqrt(self.squared_difference / self.squared_size)


def class_scores(output: Any) -> Tensor | None:
    """The scores (N, K) or (N, K, *spatial) in a network's output, or `None`.

    They are the output itself, the first of a tuple, or what a mapping calls "out" (torchvision's segmentation) or
    "logits" (Hugging Face). A list, or a mapping with other names, holds boxes or features.
    """
    if isinstance(output, Mapping):
        output = next((output[name] for name in SCORE_NAMES if name in output), None)
    elif isinstance(output, tuple):
        output = output[0] if output else None
    if isinstance(output, Tensor) and output.is_floating_point() and output.dim() in (2, 4, 5) and output.shape[1] > 1:
        return output
    return None
