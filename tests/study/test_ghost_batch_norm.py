from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from batchfree.errors import StudyError
from batchfree.study._ghost_batch_norm import GhostBatchNorm2d, with_norm_batch
from batchfree.study._models import build_model
from tests.closeness import assert_close


def network() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("resnet8", in_channels=1, num_classes=10).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


@pytest.mark.parametrize("norm_batch", [1, 2, 8])
def test_one_ghost_batch_is_the_accumulated_micro_batches(norm_batch: int) -> None:
    accumulated = network()
    ghosted = with_norm_batch(accumulated, norm_batch, torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    images = torch.randn(8, 1, 8, 8, dtype=torch.float64)
    labels = torch.arange(8)

    F.cross_entropy(ghosted(images), labels).backward()
    for micro_images, micro_labels in zip(images.split(norm_batch), labels.split(norm_batch), strict=True):
        loss = F.cross_entropy(accumulated(micro_images), micro_labels) * norm_batch / 8
        loss.backward()

    # 1e-9 and not the last bits: the rounding of one layer is amplified by the next ones at norm batch 1
    for (name, ours), (_, plain) in zip(ghosted.named_parameters(), accumulated.named_parameters(), strict=True):
        assert ours.grad is not None
        assert plain.grad is not None
        assert torch.allclose(ours.grad, plain.grad, rtol=1e-9, atol=1e-9 * plain.grad.abs().max().item()), name
    for (name, seen), (_, wanted) in zip(ghosted.named_buffers(), accumulated.named_buffers(), strict=True):
        assert torch.allclose(seen, wanted, rtol=1e-9, atol=1e-12), name


def test_at_the_whole_batch_it_is_plain_batch_norm() -> None:
    plain = nn.BatchNorm2d(4)
    ghost = GhostBatchNorm2d.from_batch_norm(copy.deepcopy(plain), 6)
    x = torch.randn(6, 4, 3, 3)
    assert_close(ghost(x), plain(x).detach().double().numpy())
    assert_close(ghost.running_var, plain.running_var.double().numpy())  # type: ignore[union-attr]
    plain.eval()
    ghost.eval()
    assert torch.equal(ghost(x), plain(x))


def test_parts_do_not_see_each_other() -> None:
    ghost = GhostBatchNorm2d.from_batch_norm(nn.BatchNorm2d(4), 2)
    x = torch.randn(6, 4, 3, 3)
    before = ghost(x)[:2]
    x[2:] *= 100
    assert torch.equal(ghost(x)[:2], before)


def test_one_value_per_channel_is_refused_with_the_layers_name() -> None:
    model = build_model("resnet8", in_channels=1, num_classes=10)
    small = torch.zeros(1, 1, 4, 4)
    with pytest.raises(StudyError, match=r"blocks\.2\.norm1 sees a map of 1x1 for images of 4x4"):
        with_norm_batch(model, 1, small)
    with_norm_batch(model, 2, small)
    assert not any(isinstance(module, GhostBatchNorm2d) for module in model.modules())


def test_a_network_of_timm_keeps_its_activations_at_the_whole_batch() -> None:
    torch.manual_seed(0)
    # double, because what rounding there is in one layer grows through the next ones
    plain = timm.create_model("regnety_002", num_classes=5).double()
    assert any(isinstance(module, BatchNormAct2d) for module in plain.modules())
    images = torch.randn(6, 3, 64, 64, dtype=torch.float64)
    ghosted = with_norm_batch(plain, 6, images[:1])
    for training in (True, False):
        seen, wanted = ghosted.train(training)(images), plain.train(training)(images)
        assert torch.allclose(seen, wanted, rtol=1e-9, atol=1e-12)
        (seen**2).sum().backward()
        (wanted**2).sum().backward()
    for (name, ours), theirs in zip(ghosted.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9 * theirs.grad.abs().max().item()), name
    for (name, ours_running), theirs_running in zip(ghosted.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(ours_running, theirs_running, rtol=1e-9, atol=1e-12), name


def test_drop_and_activation_follow_each_parts_own_normalisation() -> None:
    norm = BatchNormAct2d(4, act_layer=nn.SiLU, drop_layer=nn.Softsign)
    ghost = GhostBatchNorm2d.from_batch_norm(copy.deepcopy(norm), 2)
    x = torch.randn(6, 4, 3, 3)
    assert torch.allclose(ghost(x), torch.cat([norm(part) for part in x.split(2)]), atol=1e-6)


def test_a_norm_without_affine_parameters_is_taken() -> None:
    norm = nn.BatchNorm2d(4, affine=False)
    ghost = GhostBatchNorm2d.from_batch_norm(copy.deepcopy(norm), 3)
    x = torch.randn(6, 4, 3, 3)
    assert torch.allclose(ghost(x), torch.cat([norm(part) for part in x.split(3)]), atol=1e-6)


def test_a_norm_with_a_forward_of_its_own_is_refused() -> None:
    class Scaled(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    with pytest.raises(StudyError, match="Scaled, whose own forward would be lost"):
        with_norm_batch(nn.Sequential(Scaled(3)), 2, torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, track_running_stats=False)])
def test_a_norm_without_a_running_average_is_refused(norm: nn.BatchNorm2d) -> None:
    with pytest.raises(StudyError, match="keeps no running average"):
        with_norm_batch(nn.Sequential(norm), 2, torch.zeros(1, 3, 2, 2))
