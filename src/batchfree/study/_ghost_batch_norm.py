"""Batch Norm with statistics over fewer images than the batch has.

One pass over a batch with `GhostBatchNorm2d` is the same as micro-batches of `norm_batch` images with plain Batch Norm
whose gradients are averaged, running statistics included, and takes a fraction of the time at norm batch 1.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchfree.errors import StudyError

__all__ = ["GhostBatchNorm2d", "with_norm_batch"]


class GhostBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that takes each `norm_batch` neighbouring images as a batch of their own.

    In evaluation mode it is plain Batch Norm. Named after Hoffer et al. 2017 (arXiv 1705.08741), Algorithm 1; here the
    running statistics are those of plain Batch Norm after one micro-batch after the other. What timm's `BatchNormAct2d`
    does after normalising, `drop` and `act`, is kept.
    """

    #: What is asked for by it, and its arm's name, for messages.
    wish: ClassVar[str] = "Batch Norm over fewer images than the batch has"
    arm: ClassVar[str] = "bn"
    norm_batch: int
    #: Processes that share each batch and call this layer together, each with the next part; see `Workers`.
    workers: int = 1

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d, norm_batch: int) -> GhostBatchNorm2d:
        """A layer like `norm`, parameters and running statistics shared with it.

        Raises:
            StudyError: `norm` does something of its own that would be lost, or keeps no running average.
        """
        if type(norm).forward is not nn.BatchNorm2d.forward and not _has_activation(norm):
            raise StudyError(
                f"{cls.wish} was asked for in a {type(norm).__name__}, whose own forward would be lost. torch's "
                f"BatchNorm2d and timm's BatchNormAct2d are known. Leave {cls.arm} out of --norms, or pass a network "
                f"that is built with these."
            )
        if norm.running_mean is None or norm.momentum is None:
            raise StudyError(
                f"{cls.wish} was asked for in a {type(norm).__name__} that keeps no running average "
                f"(track_running_stats={norm.track_running_stats}, momentum={norm.momentum}). One with a momentum is "
                f"needed. Leave {cls.arm} out of --norms, or pass a network whose norms have one."
            )
        ghost = cls.__new__(cls)
        ghost.__dict__ = dict(norm.__dict__)
        ghost.norm_batch = norm_batch
        return ghost

    @classmethod
    def in_copy_of(cls, model: nn.Module, norm_batch: int) -> nn.Module:
        """A copy of `model` with such a layer in place of every Batch Norm.

        Raises:
            StudyError: it has Batch Norm of other dimensions, which would stay as it is; or as `from_batch_norm`.
        """
        norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        if others := [name for name, norm in norms if not isinstance(norm, nn.BatchNorm2d)]:
            raise StudyError(
                f"{cls.wish} was asked for, and {', '.join(others[:3])}"
                f"{f' and {len(others) - 3} more' if len(others) > 3 else ''} are not BatchNorm2d, of which alone it "
                f"can be made. Pass a model with BatchNorm2d only, or leave {cls.arm} out of --norms."
            )
        copied = copy.deepcopy(model)
        for parent in list(copied.modules()):
            for name, child in list(parent._modules.items()):
                if isinstance(child, nn.BatchNorm2d):
                    parent._modules[name] = cls.from_batch_norm(child, norm_batch)
        return copied

    def forward(self, input: Tensor) -> Tensor:
        """Normalises `input` (n, c, h, w); in training n is a multiple of `norm_batch`."""
        if not self.training:
            return self._activate(super().forward(input))
        images, channels, *spatial = input.shape
        count = images // self.norm_batch
        # Each part's channels become channels of their own, (norm_batch, count * c, h, w), so that torch's own kernel
        # computes every part's statistics at once. Momentum 1 makes it hand them out.
        parts = input.reshape(count, self.norm_batch, channels, *spatial)
        side_by_side = parts.transpose(0, 1).flatten(1, 2)
        means, variances = (input.new_zeros(count * channels) for _ in range(2))
        weight, bias = (self.weight.repeat(count), self.bias.repeat(count)) if self.affine else (None, None)
        output = F.batch_norm(side_by_side, means, variances, weight, bias, training=True, momentum=1.0, eps=self.eps)
        self._update_running(means.view(count, channels), variances.view(count, channels))
        return self._activate(output.reshape(self.norm_batch, count, channels, *spatial).transpose(0, 1).flatten(0, 1))

    def _activate(self, normalised: Tensor) -> Tensor:
        if _has_activation(self):
            return self.act(self.drop(normalised))  # type: ignore[operator]
        return normalised

    @torch.no_grad()
    def _update_running(self, means: Tensor, variances: Tensor) -> None:
        """As one update after the other, of all workers' parts in order.

        Part i of k keeps momentum * (1 - momentum)^(k - 1 - i); worker r of w holds parts r * k / w and those after it.
        """
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        count, rank = len(means), 0
        if self.workers > 1:
            rank = torch.distributed.get_rank()
        total = count * self.workers
        later = torch.arange(total - 1 - rank * count, total - 1 - (rank + 1) * count, -1, dtype=torch.float64)
        weights = (self.momentum * (1 - self.momentum) ** later).to(means)
        updates = torch.stack([weights @ means, weights @ variances])
        if self.workers > 1:
            torch.distributed.all_reduce(updates)
        for running, update in zip((self.running_mean, self.running_var), updates, strict=True):
            running.mul_((1 - self.momentum) ** total).add_(update)
        self.num_batches_tracked.add_(total)


def _has_activation(norm: nn.Module) -> bool:
    """Whether it is a `BatchNormAct2d`, told by its parts because timm need not be installed."""
    return isinstance(getattr(norm, "drop", None), nn.Module) and isinstance(getattr(norm, "act", None), nn.Module)


def with_norm_batch(model: nn.Module, norm_batch: int, example: Tensor) -> nn.Module:
    """A copy of `model` whose every BatchNorm2d takes its statistics over `norm_batch` images.

    Args:
        example: images (n, channels, height, width) of the size that training uses.

    Raises:
        StudyError: some norm would see one value per channel, whose variance does not exist; or as
            `GhostBatchNorm2d.in_copy_of`.
    """
    ghosted = GhostBatchNorm2d.in_copy_of(model, norm_batch)
    for name, elements in _map_sizes(model, example).items():
        if norm_batch * elements == 1:
            raise StudyError(
                f"Batch Norm at norm batch 1 was asked for, and its layer {name} sees a map of 1x1 for images of "
                f"{example.shape[2]}x{example.shape[3]}: one value per channel has no variance. A norm batch of at "
                f"least 2, or larger images, are needed. Leave 1 out of --norm-batch, or bn out of --norms."
            )
    return ghosted


def _map_sizes(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Spatial elements of what reaches each norm of the model."""
    probe = copy.deepcopy(model).eval()
    sizes: dict[str, int] = {}
    for name, module in probe.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda _module, inputs, name=name: sizes.__setitem__(name, math.prod(inputs[0].shape[2:]))
            )
    with torch.no_grad():
        probe(example)
    return sizes
