"""Every kind of Batch Norm, and what its Group Norm keeps of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from batchfree.convert import convert, plan_conversion
from batchfree.errors import ConversionError
from batchfree.torch import GroupNorm
from tests.closeness import assert_close


def randomised(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (norm.weight, norm.bias):
            if isinstance(value, Tensor):
                value.copy_(torch.randn(value.shape, generator=generator))
    return norm


def materialised() -> nn.Module:
    """Sizes set, and still of the lazy class, as after `load_state_dict`."""
    lazy = nn.LazyBatchNorm2d()
    lazy.load_state_dict(randomised(nn.BatchNorm2d(32)).state_dict())
    return lazy


class Detectrons(nn.Module):
    """detectron2's, of which only the buffers and the name are known."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


FrozenBatchNorm = type("FrozenBatchNorm2d", (Detectrons,), {})


class Named(nn.BatchNorm2d):
    """A subclass with nothing of its own in its forward."""


timm_layers: Any = timm.layers
KINDS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.BatchNorm1d(32), (2, 32)),
    (nn.BatchNorm1d(32), (2, 32, 7)),
    (nn.BatchNorm2d(32), (2, 32, 5, 3)),
    (nn.BatchNorm2d(32, affine=False), (2, 32, 5, 3)),
    (nn.BatchNorm2d(32, track_running_stats=False), (2, 32, 5, 3)),
    (nn.BatchNorm3d(32), (2, 32, 2, 3, 2)),
    (nn.SyncBatchNorm(32), (2, 32, 5, 3)),
    (Named(32), (2, 32, 5, 3)),
    (materialised(), (2, 32, 5, 3)),
    (FrozenBatchNorm2d(32), (2, 32, 5, 3)),
    (FrozenBatchNorm(32), (2, 32, 5, 3)),
]


@pytest.mark.parametrize(("norm", "shape"), KINDS, ids=lambda value: type(value).__name__)
def test_each_kind_becomes_torchs_group_norm_with_the_same_affine(norm: nn.Module, shape: tuple[int, ...]) -> None:
    norm = randomised(norm)
    x = torch.randn(shape)
    converted = convert(nn.Sequential(norm), num_groups=4)(x)
    weight, bias = (None if value is None else value.double() for value in (norm.weight, norm.bias))
    assert_close(converted, F.group_norm(x.double(), 4, weight, bias, 1e-5).detach().numpy())  # type: ignore[arg-type]


@pytest.mark.parametrize("frozen", [FrozenBatchNorm2d(32), FrozenBatchNorm(32)])
def test_what_was_frozen_stays_frozen(frozen: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), frozen)
    converted = convert(model)
    assert converted.state_dict().keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert not any(parameter.requires_grad for parameter in converted[1].parameters())  # type: ignore[index]
    assert plan_conversion(model).rows[0].keeps == ("weight", "bias", "frozen")
    converted(torch.randn(1, 3, 4, 4)).square().sum().backward()


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish])
@pytest.mark.parametrize("drop", [None, nn.AlphaDropout])
def test_every_timm_kind_keeps_its_activation_and_drop(act: type[nn.Module], drop: type[nn.Module] | None) -> None:
    options = {} if act is nn.GELU else {"inplace": True}
    batch_norm: Any = timm_layers.BatchNormAct2d(32, act_layer=act, inplace=bool(options), drop_layer=drop)
    randomised(batch_norm)
    synchronised = timm_layers.convert_sync_batchnorm(copy.deepcopy(batch_norm))
    frozen = timm_layers.freeze_batch_norm_2d(copy.deepcopy(batch_norm))
    x = torch.randn(2, 32, 5, 3)
    expected = act()(F.group_norm(x.double(), 4, batch_norm.weight.double(), batch_norm.bias.double(), 1e-5))
    for norm in (batch_norm, synchronised, frozen):
        for fuse in (False, True):
            converted: Any = convert(nn.Sequential(norm.eval()), num_groups=4, fuse=fuse)
            assert_close(converted(x), expected.detach().numpy())
            assert isinstance(converted[0].drop, drop or nn.Identity)
            is_fused = fuse and drop is None and act is not nn.Hardswish
            assert (converted[0].activation is not None) is is_fused
            assert isinstance(converted[0].act, nn.Identity if is_fused else act)


def test_one_parameter_of_two_is_kept() -> None:
    norm = randomised(nn.BatchNorm2d(32))
    norm.bias = None  # type: ignore[assignment]
    x = torch.randn(2, 32, 5, 3)
    expected = F.group_norm(x.double(), 4, dict(norm.named_parameters())["weight"].double(), None)
    assert_close(convert(nn.Sequential(norm), num_groups=4)(x), expected.detach().numpy())


class OwnForward(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Stranger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))


class MoreParameters(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.temperature = nn.Parameter(torch.ones(1))


def parametrised() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    return norm


def replaced() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    norm.forward = lambda x: x  # type: ignore[assignment, method-assign]
    return norm


@pytest.mark.parametrize(
    ("norm", "reasons"),
    [
        (OwnForward(8), ["whose own forward would be lost"]),
        (Stranger(), ["whose own forward would be lost"]),
        (MoreParameters(8), ["its Parameters temperature would be lost"]),
        (parametrised(), ["remove_parametrizations"]),
        (replaced(), ["replaced on this one object"]),
        (nn.BatchNorm2d(8, eps=0.0), ["eps to 1e-5"]),
        (nn.LazyBatchNorm2d(), ["Run the model once"]),
        (OwnForward(8, eps=0.0), ["whose own forward would be lost", "eps to 1e-5"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_refused_gives_all_its_reasons_in_the_plan_and_in_the_error(
    norm: nn.Module, reasons: list[str]
) -> None:
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Sequential(norm))
    row = plan_conversion(model).rows[1]
    assert len(row.reasons) == len(reasons)
    assert row.num_groups is None
    with pytest.raises(ConversionError) as caught:
        convert(model)
    for found, expected in zip(row.reasons, reasons, strict=True):
        assert expected in found
        assert f"1.0: {found}" in str(caught.value)


def test_vectors_and_single_elements_get_groups_of_enough_values() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(74), nn.Flatten(), nn.BatchNorm1d(74))
    x = torch.randn(1, 74, 4, 4)
    assert [row.num_groups for row in plan_conversion(model).rows] == [37, 37]  # groups of 2, unseen
    assert [row.values_per_group for row in plan_conversion(model, x).rows] == [37, 37]
    output = convert(model, example_inputs=x)(x)
    assert output.abs().max() > 0.1  # where one value is a group, all would be zero
    with pytest.raises(ConversionError) as caught:
        convert(model, num_groups=74, example_inputs=x)
    assert "Pass num_groups=37" in str(caught.value)
    suggested = convert(model, num_groups=37, example_inputs=x)
    assert [layer.num_groups for layer in suggested.modules() if isinstance(layer, GroupNorm)] == [37, 37]
    with pytest.raises(ConversionError, match="pass norm='gn'"):
        convert(model, "in", example_inputs=x)
