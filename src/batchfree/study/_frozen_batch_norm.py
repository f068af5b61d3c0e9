"""Batch Norm as fine-tuning often has it: held as it was trained."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from batchfree.study._ghost_batch_norm import GhostBatchNorm2d

__all__ = ["FrozenBatchNorm2d", "with_frozen_batch_norm"]


class FrozenBatchNorm2d(GhostBatchNorm2d):
    """`torch.nn.BatchNorm2d` that normalises by its running statistics in training too, and learns nothing.

    Statistics, weight and bias are fixed, as in torchvision's `FrozenBatchNorm2d` and Keras's `trainable = False`;
    unlike torchvision's, it keeps the names of the state and what timm's `BatchNormAct2d` does after normalising.
    """

    wish: ClassVar[str] = "frozen Batch Norm"
    arm: ClassVar[str] = "bn-frozen"

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stays in evaluation mode, whatever `mode` is."""
        super().train(False)
        return self


def with_frozen_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of `model` whose every Batch Norm is frozen.

    Raises:
        StudyError: some norm does something of its own that would be lost, keeps no running average, or is of other
            dimensions than BatchNorm2d.
    """
    frozen = FrozenBatchNorm2d.in_copy_of(model, norm_batch=1)  # which evaluation mode does not look at
    for norm in frozen.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.train().requires_grad_(False)
    return frozen
