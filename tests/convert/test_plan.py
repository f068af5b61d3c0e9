from __future__ import annotations

import dataclasses
import doctest
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from batchfree.convert import _plan, convert, plan_conversion
from batchfree.errors import ArgumentError, ConversionError


class Network(nn.Module):
    """A shared norm, an unused one, and one behind a branch on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.again = nn.ModuleList([self.norm])
        self.unused = nn.BatchNorm2d(32)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.first(x)))
        return self.again[0](self.second(x)) if x.sum() > -1e9 else self.unused(x)


def test_a_row_has_what_a_run_shows() -> None:
    shared, unused = plan_conversion(Network(), torch.randn(1, 3, 8, 6)).rows
    assert shared.names == ("norm", "again.0")
    assert (shared.kind, shared.channels, shared.num_groups) == ("BatchNorm2d", 32, 2)
    assert (shared.spatial, shared.values_per_group) == ((4, 3), 32 // 2 * 12)  # the smaller of its two inputs
    assert shared.convolutions == ("first", "second")
    assert shared.keeps == ("weight", "bias")
    assert (unused.spatial, unused.values_per_group, unused.convolutions) == (None, None, ())
    assert unused.not_fused == "it was not reached"


def test_without_inputs_the_plan_says_what_it_does_not_know() -> None:
    plan = plan_conversion(Network())
    assert plan.reasons == ()
    assert [row.spatial for row in plan.rows] == [None, None]
    assert any("spatial sizes" in line for line in plan.unknown)
    assert any("cannot be traced" in line for line in plan.unknown)
    assert "Pass example_inputs" in str(plan)
    traced = plan_conversion(torchvision.models.resnet18(weights=None))
    assert len(traced.unknown) == 1
    assert traced.rows[1].convolutions == ("layer1.0.conv1",)


def test_the_table_fits_its_width_and_shows_every_norm_and_reason() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return input

    deep: nn.Module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), Own(6))
    for _ in range(30):
        deep = nn.ModuleDict({"a_long_name": deep}) if _ < 29 else nn.Sequential(deep)
    text = str(plan_conversion(deep, num_groups=4))
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("refused") == 2
    assert "6 channels do not split into 4 equal groups" in text
    assert "own forward would be lost" in text.replace("\n    ", " ")
    resnet = str(plan_conversion(torchvision.models.resnet18(weights=None), torch.randn(1, 3, 32, 32), ws=True))
    assert "layer1.0.conv1 (ws)" in resnet
    assert "residual + relu" in resnet


def test_groups_by_name_rebuild_an_architecture() -> None:
    model = Network()
    x = torch.randn(1, 3, 8, 6)
    converted: Any = convert(model, groups={"again.0": 8}, example_inputs=x)
    assert (converted.norm.num_groups, converted.unused.num_groups) == (8, 2)
    assert plan_conversion(model, x, groups={"again.0": 8}).rows[0].groups_reason == "given for this norm"
    with pytest.raises(ArgumentError, match=r"unknown norm in groups 'agian.0'.*again\.0"):
        convert(model, groups={"agian.0": 8})
    assert convert(model, groups=lambda channels: channels // 4).norm.num_groups == 8  # type: ignore[union-attr]


def test_a_row_is_frozen_and_a_plan_too() -> None:
    plan = plan_conversion(Network())
    for frozen, name in ((plan, "rows"), (plan.rows[0], "num_groups")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, None)


def test_a_convolution_that_cannot_take_weight_standardization_stays_plain_with_a_reason() -> None:
    parametrised = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8),
        parametrised, nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1, groups=8), nn.BatchNorm2d(8),
    )  # fmt: skip
    plan = plan_conversion(model, ws=True)
    assert [row.standardizes for row in plan.rows] == [("0",), (), ()]
    assert "parametrised" in plan.rows[1].stays_plain[0]
    assert "fan-in is 1" in plan.rows[2].stays_plain[0]
    x = torch.randn(1, 3, 6, 6)
    converted: Any = convert(model, ws=True)
    assert torch.allclose(converted(x), convert(model)(x), atol=1e-5)
    assert torch.equal(converted[2].weight, parametrised.weight)
    with pytest.raises(ConversionError, match="no convolution that a norm reads"):
        convert(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)), ws=True)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        (torch.randn(1, 4, 8, 8), "expected input"),
        ("an image", "TypeError"),
        ((), "missing"),
        (torch.randn(1, 3, 8, 8, dtype=torch.float64), "dtype|type"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_an_error_with_the_models_own(inputs: object, problem: str) -> None:
    model = Network()
    with pytest.raises(ConversionError, match=f"(?s)Network could not be run on the example inputs.*({problem})"):
        plan_conversion(model, inputs)
    plan_conversion(model, (torch.randn(1, 3, 8, 8),))


def test_a_detector_in_training_mode_needs_its_targets() -> None:
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    images = [torch.randn(3, 32, 32)]
    with pytest.raises(ConversionError, match=r"model\.eval\(\)"):
        plan_conversion(model, images)
    assert plan_conversion(model.eval(), images).rows[0].spatial == (160, 160)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(_plan).failed == 0
