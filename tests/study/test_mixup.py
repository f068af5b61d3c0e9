from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from batchfree.records import CellConfig, read_metrics
from batchfree.study._arm import NetworkImages, build_network
from batchfree.study._data import ImageData
from batchfree.study._mixup import Mixup, draw_mixup
from batchfree.study._models import build_model
from batchfree.study._training import Training, TrainingFiles, image_order
from batchfree.study._workers import Workers
from tests.closeness import assert_close
from tests.study.quick import cells_of, quick_study

IMAGES = 6


def pictures() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels of four classes, and a network's scores."""
    generator = torch.Generator().manual_seed(0)
    images, scores = (torch.randn(IMAGES, *shape, generator=generator) for shape in ((3, 4, 4), (4,)))
    return images, torch.tensor([0, 3, 1, 1, 2, 0]), scores


def soft_cross_entropy(scores: Tensor, targets: np.ndarray) -> float:
    """Mean of -sum target log softmax, in float64."""
    logits = scores.double().numpy()
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(-(targets * logs).sum(axis=1).mean())


def test_images_and_loss_are_torchvisions_for_its_share_and_partners() -> None:
    from torchvision.transforms import v2

    images, labels, scores = pictures()
    torch.manual_seed(3)
    blended, targets = v2.MixUp(alpha=1.0, num_classes=4)(images, labels)
    assert float(targets[0, labels[0]]) == 1.0  # image 0 is blended with the last, of the same class
    share = float(targets[1, labels[1]])
    assert 0.05 < share < 0.95
    partners = torch.arange(IMAGES).roll(1)  # torchvision's partner is always the image before
    mixup = Mixup(share, partners)
    assert_close(mixup.images(images, images[partners]).numpy(), blended.double().numpy())
    expected = soft_cross_entropy(scores, targets.double().numpy())
    assert float(mixup.loss(scores, labels, labels[partners])) == pytest.approx(expected, rel=1e-6)


def test_shares_follow_the_beta_distribution_and_partners_are_a_permutation() -> None:
    for alpha in (0.1, 1.0):
        draws = [draw_mixup(alpha, 8, seed=0, epoch=step // 20, step=step % 20) for step in range(400)]
        assert stats.kstest([draw.share for draw in draws], stats.beta(alpha, alpha).cdf).pvalue > 0.01
        assert all(sorted(draw.partners.tolist()) == list(range(8)) for draw in draws)
        places = np.array([draw.partners.tolist() for draw in draws])  # each partner 50 times at each place
        counts = np.stack([(places == image).sum(axis=0) for image in range(8)])
        assert stats.chisquare(counts.ravel(), ddof=14).pvalue > 0.001


def test_seed_epoch_and_step_all_matter_and_nothing_else() -> None:
    def drawn(seed: int, epoch: int, step: int) -> tuple[float, list[int]]:
        mixup = draw_mixup(0.1, 50, seed=seed, epoch=epoch, step=step)
        return mixup.share, mixup.partners.tolist()

    torch.manual_seed(1)
    first = drawn(1, 2, 3)
    torch.manual_seed(2)
    assert drawn(1, 2, 3) == first
    different = [first, drawn(0, 2, 3), drawn(1, 0, 3), drawn(1, 2, 0), drawn(2, 1, 3)]
    assert len({share for share, _ in different}) == len({tuple(partners) for _, partners in different}) == 5
    assert draw_mixup(0.1, 50, seed=1, epoch=2, step=0).partners.tolist() != image_order(1, 2, 50).tolist()


def steps_of(cell: CellConfig, data: ImageData, folder: Path) -> Training:
    files = TrainingFiles(folder / "metrics.jsonl", folder / "checkpoint", 1e6)
    return Training(cell, files, data, build_network(cell, data), Workers(1), lambda: False, time.perf_counter())


@pytest.mark.parametrize("norm_batch", [8, 2])
def test_a_step_blends_over_the_whole_sgd_batch_whatever_the_norm_batch(
    norm_batch: int, digits: ImageData, tmp_path: Path
) -> None:
    one_step = {"norm": ["bn"], "norm_batch": [norm_batch], "sgd_batch": 8, "train_images": 160, "mixup": 1.0}
    (cell,) = cells_of(quick_study(**one_step, epochs="default", max_steps=1))
    steps_of(cell, digits, tmp_path).finish()
    (line,) = read_metrics(tmp_path / "metrics.jsonl")

    mixup = draw_mixup(1.0, 8, seed=0, epoch=0, step=0)
    assert 0.05 < mixup.share < 0.95
    chosen = image_order(0, 0, 160)[:8]
    images, labels = NetworkImages(cell, digits).training(slice(None)), digits.train_labels
    torch.manual_seed(cell.seed)
    network = build_model(
        cell.model, in_channels=1, num_classes=10
    ).train()  # its plain Batch Norm sees what it is given
    pairs = list(zip(chosen.tolist(), chosen[mixup.partners].tolist(), strict=True))
    blended = torch.stack([mixup.share * images[own] + (1 - mixup.share) * images[other] for own, other in pairs])
    with torch.no_grad():
        scores = torch.cat([network(part) for part in blended.split(norm_batch)])
    targets = np.zeros((8, 10))
    for place, (own, other) in enumerate(pairs):
        targets[place, labels[own]] += mixup.share
        targets[place, labels[other]] += 1 - mixup.share
    assert line.train_loss == pytest.approx(soft_cross_entropy(scores, targets), rel=1e-5)
