"""Converted networks in private training: Opacus accepts them, and its per-sample gradients are right."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from batchfree.convert import convert
from batchfree.errors import ArgumentError

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1])

# Opacus builds its data loader and hooks with calls that torch is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def converted(name: str, example: Tensor | None = None) -> nn.Module:
    """As the documentation says: nothing in place, which Opacus's hooks do not stand, and activations fused."""
    torch.manual_seed(0)
    if name == "resnet18":
        model = torchvision.models.resnet18(weights=None, num_classes=3)
    else:
        model = timm.create_model(name, num_classes=3)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return convert(model, fuse=True, example_inputs=example)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_per_sample_gradients_are_those_of_one_image_at_a_time(name: str) -> None:
    model = converted(name).double()
    assert ModuleValidator.validate(model, strict=True) == []
    images = IMAGES.double()
    alone = [gradients(model, images[i : i + 1], LABELS[i : i + 1]) for i in range(len(images))]
    private = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    F.cross_entropy(private(images), LABELS, reduction="sum").backward()
    for parameter_name, parameter in private._module.named_parameters():
        expected = torch.stack([found[parameter_name] for found in alone])
        sample: Any = parameter.grad_sample
        torch.testing.assert_close(sample, expected, rtol=1e-7, atol=1e-9)
        assert expected.abs().max() > 0


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_a_step_under_the_privacy_engine_trains(name: str) -> None:
    model = converted(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3)
    private, noisy, batches = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0,
        poisson_sampling=False,
    )  # fmt: skip
    before = [parameter.clone() for parameter in model.parameters()]
    for images, labels in batches:
        noisy.zero_grad()
        F.cross_entropy(private(images), labels).backward()
        noisy.step()
    for old, new in zip(before, model.parameters(), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(images), labels, reduction="sum").backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_a_fused_sum_is_refused_by_name_instead_of_giving_wrong_gradients() -> None:
    private = GradSampleModule(converted("resnet18", IMAGES[:1]))
    with pytest.raises(ArgumentError, match="no example_inputs"):
        F.cross_entropy(private(IMAGES), LABELS).backward()
