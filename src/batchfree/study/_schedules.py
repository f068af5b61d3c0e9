"""The learning rate of each step, by schedule."""

from __future__ import annotations

import math

from batchfree.errors import StudyError
from batchfree.records import CellConfig
from batchfree.study._bit_rule import bit_learning_rate, bit_rule

__all__ = ["check_steps", "learning_rate_at"]


def learning_rate_at(config: CellConfig, step: int, total_steps: int) -> float:
    """The learning rate of `step`, from 0, of `total_steps`."""
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    if config.schedule == "step":
        # Wu & He 2018: a tenth after 30, 60 and 90 of 100 epochs.
        drops = sum(step >= round(share * total_steps) for share in (0.3, 0.6, 0.9))
        return config.learning_rate * 0.1**drops
    if config.schedule == "bit":
        # BiT's rule fixes the number of steps; a run of another length goes through its phases in proportion.
        rule_steps = bit_rule(config.train_images, 1).steps
        return bit_learning_rate(step * rule_steps // total_steps, config.train_images, config.learning_rate)
    return config.learning_rate


def check_steps(config: CellConfig) -> None:
    """Refuses an epoch without a step.

    Raises:
        StudyError: the training images are not one full SGD batch.
    """
    if config.train_images < config.sgd_batch:
        raise StudyError(
            f"an SGD batch of {config.sgd_batch} is more than the {config.train_images} training images. "
            f"An epoch needs at least one full batch. Pass more train_images or smaller batches."
        )
