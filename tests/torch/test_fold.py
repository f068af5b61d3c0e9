from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest
import torch
from torch import nn

from batchfree import reference
from batchfree.torch import WSConv1d, WSConv2d, WSConv3d, _fold, fold
from batchfree.torch._weight_standardization import Variant
from tests.closeness import assert_close

DIMENSIONS = [(WSConv1d, nn.Conv1d), (WSConv2d, nn.Conv2d), (WSConv3d, nn.Conv3d)]


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("ws_class", "plain_class"), DIMENSIONS)
def test_folded_convolution_is_plain_and_computes_the_same(ws_class: Any, plain_class: Any) -> None:
    conv = ws_class(4, 6, 3, padding=1, bias=False)
    folded = fold(conv)
    assert type(folded) is plain_class
    x = tensor(2, 4, *(5,) * (conv.weight.dim() - 2))
    assert torch.equal(folded(x), conv(x))
    assert "variant" not in repr(folded)


def test_folding_a_network_leaves_it_alone_and_reaches_every_convolution() -> None:
    tied = WSConv2d(4, 4, 3, padding=1)
    network = nn.Sequential(WSConv2d(3, 4, 3), nn.Sequential(tied, nn.ReLU(), tied), nn.Conv2d(4, 2, 1)).eval()
    folded: Any = fold(network)
    x = tensor(2, 3, 8, 8)
    assert torch.equal(folded(x), network(x))
    assert isinstance(network[0], WSConv2d)
    assert not any(isinstance(module, WSConv2d) for module in folded.modules())
    assert folded[1][0] is folded[1][2]
    assert not folded[0].training
    assert folded[0].weight is not network[0].weight


def test_gain_and_offset_are_folded_in_and_gone() -> None:
    conv = WSConv2d(3, 4, 3, affine=True)
    assert conv.gain is not None
    assert conv.offset is not None
    with torch.no_grad():
        conv.gain.copy_(tensor(4))
        conv.offset.copy_(tensor(4, seed=1))
    folded = fold(conv)
    assert folded.state_dict().keys() == nn.Conv2d(3, 4, 3).state_dict().keys()
    standardized = torch.from_numpy(reference.standardize_weight(conv.weight.detach()))
    expected = tensor(4).view(4, 1, 1, 1) * standardized + tensor(4, seed=1).view(4, 1, 1, 1)
    assert_close(folded.weight, expected.numpy())


@pytest.mark.parametrize("variant", ["bit", "qiao"])
@pytest.mark.parametrize(("ws_class", "plain_class"), DIMENSIONS)
def test_a_preserved_convolution_computes_what_the_plain_one_does(
    ws_class: Any, plain_class: Any, variant: Variant
) -> None:
    plain = plain_class(4, 6, 3, padding=1, groups=2)
    with torch.no_grad():
        plain.weight[0] = 0.25  # a dead filter has a mean and no deviation
        plain.weight[1] = 0
        plain.weight[2] += 5  # its mean dwarfs its deviation
    keys = [*plain.state_dict()]
    conv = ws_class.from_conv(plain, variant=variant, preserve=True)
    assert [*plain.state_dict()] == keys
    assert [*conv.state_dict()] == ["weight", "bias", "gain", "offset"]
    x = tensor(2, 4, *(5,) * (plain.weight.dim() - 2))
    assert_close(conv(x), copy.deepcopy(plain).double()(x.double()).detach().numpy())
    assert not torch.equal(ws_class.from_conv(plain, variant=variant)(x), conv(x))
    conv(x).backward(tensor(*conv(x).shape, seed=1))
    assert all(parameter.grad.isfinite().all() for parameter in conv.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_filters_are_preserved_to_their_own_rounding(dtype: torch.dtype) -> None:
    plain = nn.Conv2d(3, 4, 3, dtype=dtype)
    plain.weight.requires_grad_(False)
    conv = WSConv2d.from_conv(plain, preserve=True)
    assert conv.gain is not None
    assert conv.gain.dtype is dtype
    assert not conv.gain.requires_grad
    largest = plain.weight.abs().max()
    assert (conv.standardized_weight() - plain.weight).abs().max() < 4 * torch.finfo(dtype).eps * largest


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(_fold).failed == 0
