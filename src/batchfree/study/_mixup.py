"""mixup: each image of a step blended with another one of it, and the loss with its label (Zhang et al. 2018).

Source: arXiv 1710.09412, equation 1 and section 2, with one lambda per step as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Mixup", "draw_mixup"]

#: Sets these random numbers apart from those of the images' order, which have seed and epoch too.
STREAM = 1710_09412


@dataclass(frozen=True)
class Mixup:
    """What one step blends: `share` of image i with 1 - `share` of image `partners[i]`."""

    share: float
    partners: Tensor  # (n,) a permutation of the step's places

    def images(self, own: Tensor, partners: Tensor) -> Tensor:
        """The images that are trained on, from two tensors of one shape."""
        return self.share * own + (1 - self.share) * partners

    def loss(self, scores: Tensor, own: Tensor, partners: Tensor) -> Tensor:
        """Mean cross-entropy to the labels (n,) of both: that to the blended label, in which it is linear."""
        return self.share * F.cross_entropy(scores, own) + (1 - self.share) * F.cross_entropy(scores, partners)


def draw_mixup(alpha: float, images: int, *, seed: int, epoch: int, step: int) -> Mixup:
    """What the step blends, a function of seed, epoch and step alone: resumed runs, workers and arms agree.

    Args:
        alpha: above 0; the share is drawn from Beta(alpha, alpha).
        images: of the whole SGD batch, over all workers and norm batches. Were partners sought in the norm batch, arms
            would train on other images at each, and on none that is blended at 1.
    """
    random = numpy.random.default_rng((STREAM, seed, epoch, step))
    return Mixup(float(random.beta(alpha, alpha)), torch.from_numpy(random.permutation(images)))
