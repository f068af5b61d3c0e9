"""What is measured on the validation images after each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchfree.study._frozen_batch_norm import FrozenBatchNorm2d
from batchfree.study._ghost_batch_norm import GhostBatchNorm2d

__all__ = ["Scores", "evaluate", "has_batch_norm", "recomputed_statistics"]

VALIDATION_BATCH = 100  # speed only: in evaluation no norm sees the batch, and maps of 100 images stay in cache
PERCENTILES = (0.01, 0.20, 0.80, 0.99)
#: torch.quantile takes no more values than this at once.
QUANTILE_VALUES = 2**24
#: Training images whose statistics take the place of the running ones.
RECOMPUTING_IMAGES = 2000


@dataclass(frozen=True)
class Scores:
    """Of one network on one set of images."""

    loss: float  # mean cross-entropy, nats
    error_percent: float
    feature_percentiles: tuple[float, float, float, float] | None


@torch.no_grad()
def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> Scores:
    """Loss and error over all images; percentiles of the last convolution's output over `VALIDATION_BATCH` of them.

    Args:
        images: (n, channels, height, width) as the network takes them.
        labels: (n,) class numbers.
    """
    network.eval()
    loss = 0.0
    wrong = 0
    features: list[Tensor] = []
    with _last_convolution(network, features):
        network(images[:: max(1, len(images) // VALIDATION_BATCH)][:VALIDATION_BATCH])  # from all over: sets are sorted
    for start in range(0, len(images), VALIDATION_BATCH):
        scores = network(images[start : start + VALIDATION_BATCH])
        wanted = labels[start : start + VALIDATION_BATCH]
        loss += F.cross_entropy(scores, wanted, reduction="sum").item()
        wrong += int((scores.argmax(dim=1) != wanted).sum())
    return Scores(loss / len(images), 100 * wrong / len(images), _percentiles(features))


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the network keeps running statistics, and is not held to those it has."""
    return any(
        isinstance(module, _BatchNorm) and not isinstance(module, FrozenBatchNorm2d) for module in network.modules()
    )


@contextmanager
@torch.no_grad()
def recomputed_statistics(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Inside, every Batch Norm's running statistics are those of `images` under the present weights.

    The plain average over batches of `VALIDATION_BATCH`, as Wu & Johnson 2021 (arXiv 2105.07576, section 3) compute
    population statistics; a batch that large, whatever the norm batch was, so that only the weights are judged.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    attributes = [
        (norm.momentum, *((norm.norm_batch, norm.workers) if isinstance(norm, GhostBatchNorm2d) else (None, None)))
        for norm in norms
    ]
    batches = torch.split(images, VALIDATION_BATCH)
    if len(batches) > 1 and len(batches[-1]) < VALIDATION_BATCH:
        batches = batches[:-1]
    try:
        network.eval()  # dropout and its like stay off
        for norm in norms:
            norm.train()
        for index, batch in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (index + 1)  # the running value becomes the mean of all batches so far
                if isinstance(norm, GhostBatchNorm2d):
                    norm.norm_batch = len(batch)
                    norm.workers = 1  # each computes the same
            network(batch)
        yield
    finally:
        for norm, buffers, (momentum, norm_batch, workers) in zip(norms, kept, attributes, strict=True):
            norm.momentum = momentum
            if isinstance(norm, GhostBatchNorm2d):
                assert norm_batch is not None
                assert workers is not None
                norm.norm_batch, norm.workers = norm_batch, workers
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])


@contextmanager
def _last_convolution(network: nn.Module, into: list[Tensor]) -> Iterator[None]:
    """Collects the output of the convolution that runs last."""
    handles = [
        module.register_forward_hook(lambda _module, _input, output: into.__setitem__(slice(None), [output]))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _percentiles(features: list[Tensor]) -> tuple[float, float, float, float] | None:
    if not features:
        return None
    values = features[0].detach().flatten().double()[:QUANTILE_VALUES]
    found = torch.quantile(values, torch.tensor(PERCENTILES, dtype=torch.float64, device=values.device)).tolist()
    return found[0], found[1], found[2], found[3]
