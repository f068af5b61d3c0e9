from __future__ import annotations

import random

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from batchfree.convert._dataflow import dataflow_by_running, dataflow_by_tracing
from batchfree.errors import ConversionError


class Twisted(nn.Module):
    """Convolutions that feed a norm, an activation, a residual sum, and a norm after an in-place change."""

    def __init__(self) -> None:
        super().__init__()
        self.to_norm, self.to_relu, self.to_sum, self.changed = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.norm, self.norm_of_relu, self.norm_of_changed = (nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.to_norm(x))
        x = self.norm_of_relu(F.relu(self.to_relu(x)))
        x = x + self.to_sum(x)
        return self.norm_of_changed(F.relu(self.changed(x), inplace=True))


class DependsOnItsData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else self.norm(self.conv(-x))


def test_only_convolutions_that_feed_a_norm_directly_are_seen() -> None:
    assert dataflow_by_running(Twisted(), torch.randn(2, 4, 5, 5)).normalised_convolutions == {"to_norm"}
    assert dataflow_by_tracing(Twisted()).normalised_convolutions == {"to_norm"}


def test_a_convolution_used_twice_counts_only_if_a_norm_takes_it_both_times() -> None:
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    x = torch.randn(2, 4, 5, 5)
    for network, expected in (
        (nn.Sequential(conv, norm, conv, norm), {"0"}),
        (nn.Sequential(conv, norm, conv, nn.ReLU()), set()),
    ):
        assert dataflow_by_running(network, x).normalised_convolutions == expected
        assert dataflow_by_tracing(network).normalised_convolutions == expected


def test_the_smallest_map_of_a_shared_norm_is_kept() -> None:
    norm = nn.BatchNorm2d(4)
    network = nn.Sequential(norm, nn.MaxPool2d(2), norm)
    assert dataflow_by_running(network, torch.randn(2, 4, 6, 8)).norms["0"].smallest_map == (3, 4)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_running_and_tracing_see_the_same_in_torchvision(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None)
    ran, traced = dataflow_by_running(model, torch.randn(1, 3, 32, 32)), dataflow_by_tracing(model)
    assert ran.normalised_convolutions == traced.normalised_convolutions
    assert {name: (norm.callers, norm.convolutions) for name, norm in ran.norms.items()} == {
        name: (norm.callers, norm.convolutions) for name, norm in traced.norms.items()
    }
    assert ran.norms.keys() == traced.norms.keys()
    assert len(ran.normalised_convolutions) > 0


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnetv2_50", "dla34"])
def test_running_and_tracing_see_the_same_in_timm(name: str) -> None:
    model = timm.create_model(name)
    ran, traced = dataflow_by_running(model, torch.randn(1, 3, 32, 32)), dataflow_by_tracing(model)
    assert ran.normalised_convolutions == traced.normalised_convolutions


def test_parts_that_only_training_uses_are_reached_in_training_mode() -> None:
    model = torchvision.models.googlenet(weights=None, init_weights=False)
    x = torch.randn(1, 3, 64, 64)
    assert "aux1.conv.bn" in dataflow_by_running(model.train(), x).norms
    assert "aux1.conv.bn" not in dataflow_by_running(model.eval(), x).norms


def test_running_leaves_the_random_numbers_and_no_hooks() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    dataflow_by_running(model, (torch.ones(2, 3, 5, 5),))
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_running_leaves_pythons_random_numbers_and_reads_a_norm_that_is_called_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, affine=False, track_running_stats=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.norm(input=self.conv(x))
            return y * random.random()

    before = random.getstate()
    flow = dataflow_by_running(Keyword(), torch.randn(1, 3, 1, 1))
    assert flow.norms["norm"].convolutions == {"conv"}
    assert flow.norms["norm"].smallest_map == (1, 1)
    assert random.getstate() == before


def test_inputs_made_for_inference_serve_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.inference_mode():
        assert dataflow_by_running(model, torch.ones(2, 3, 5, 5)).normalised_convolutions == {"0"}


def test_a_model_that_cannot_be_traced_is_run_instead_when_inputs_are_given() -> None:
    with pytest.raises(ConversionError, match="example_inputs"):
        dataflow_by_tracing(DependsOnItsData())
    assert dataflow_by_running(DependsOnItsData(), torch.ones(2, 3, 5, 5)).normalised_convolutions == {"conv"}
