from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from batchfree.study._evaluation import evaluate, has_batch_norm, recomputed_statistics
from batchfree.study._ghost_batch_norm import with_norm_batch


@pytest.fixture
def images() -> Tensor:
    return torch.randn(250, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * 3 + 5


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def test_loss_and_error_are_those_of_all_images_at_once(network: nn.Module, images: Tensor) -> None:
    labels = torch.arange(250) % 5
    scores = evaluate(network, images, labels)
    with torch.no_grad():
        logits = network.eval()(images).double()
    chosen = logits.log_softmax(dim=1)[torch.arange(250), labels]
    assert scores.loss == pytest.approx(-chosen.mean().item(), rel=1e-5)
    assert scores.error_percent == pytest.approx(100 * (logits.argmax(1) != labels).double().mean().item())


def test_percentiles_are_those_of_the_last_convolutions_output(network: nn.Module, images: Tensor) -> None:
    scores = evaluate(network, images, torch.zeros(250, dtype=torch.int64))
    assert isinstance(network, nn.Sequential)
    with torch.no_grad():
        features = network[:4](images[::2][:100]).numpy()  # every second of 250
    assert scores.feature_percentiles == pytest.approx(np.percentile(features, [1, 20, 80, 99]), rel=1e-5)
    assert (
        evaluate(nn.Flatten(), images[:, :1, :1, :5].contiguous(), torch.zeros(250).long()).feature_percentiles is None
    )


def test_recomputed_statistics_are_the_mean_over_large_batches_and_go_away_again(
    network: nn.Module, images: Tensor
) -> None:
    ghosted = with_norm_batch(network, 2, images[:1])
    for module in ghosted.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.running_mean, 100.0)  # type: ignore[arg-type]
    before = {name: buffer.clone() for name, buffer in ghosted.named_buffers()}
    assert isinstance(ghosted, nn.Sequential)
    with recomputed_statistics(ghosted, images):  # batches of 100; the rest of 50 is left out
        inputs = ghosted[0](images[:200]).double().reshape(2, 100, 8, -1)
        running_mean, running_var = ghosted[1].running_mean, ghosted[1].running_var
        assert isinstance(running_mean, Tensor)
        assert isinstance(running_var, Tensor)
        assert torch.allclose(running_mean.double(), inputs.mean(dim=(0, 1, 3)), rtol=1e-5)
        expected = inputs.transpose(1, 2).flatten(2).var(dim=2).mean(dim=0)
        assert torch.allclose(running_var.double(), expected, rtol=1e-5)
    after = dict(ghosted.named_buffers())
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {module.norm_batch for module in ghosted.modules() if hasattr(module, "norm_batch")} == {2}


def test_recomputing_leaves_dropout_off(network: nn.Module, images: Tensor) -> None:
    assert isinstance(network, nn.Sequential)
    dropping = nn.Sequential(nn.Dropout2d(0.5), *network)
    found = []
    for _ in range(2):
        with recomputed_statistics(dropping, images):
            norm = dropping[2]
            assert isinstance(norm.running_mean, Tensor)
            found.append(norm.running_mean.clone())
    assert torch.equal(*found)


def test_only_networks_with_running_statistics_are_recomputed(network: nn.Module) -> None:
    assert has_batch_norm(network)
    assert not has_batch_norm(nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2)))
