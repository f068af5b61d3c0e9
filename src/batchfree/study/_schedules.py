"""The learning rate of each step, by schedule."""

from __future__ import annotations

import math

from batchfree.records import CellConfig
from batchfree.study._bit_rule import bit_learning_rate

__all__ = ["learning_rate_at"]


def learning_rate_at(config: CellConfig, step: int, total_steps: int) -> float:
    """The learning rate of `step`, from 0, of `total_steps`."""
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    if config.schedule == "step":
        # Wu & He 2018: a tenth after 30, 60 and 90 of 100 epochs.
        drops = sum(step >= round(share * total_steps) for share in (0.3, 0.6, 0.9))
        return config.learning_rate * 0.1**drops
    if config.schedule == "bit":
        return bit_learning_rate(step, config.train_images, config.learning_rate)
    return config.learning_rate
