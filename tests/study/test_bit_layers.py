from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.layers.norm_act import GroupNormAct
from timm.layers.std_conv import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn

from batchfree.errors import StudyError
from batchfree.study._bit_layers import has_bit_layers, require_batch_norm, with_own_layers
from batchfree.torch import GroupNorm, WSConv2d
from tests.closeness import assert_close


@pytest.fixture
def network() -> nn.Module:
    """Big Transfer's network, one block to a stage, with random gammas and betas."""
    torch.manual_seed(0)
    network = ResNetV2(
        layers=[1, 1, 1, 1],
        channels=(128, 128, 128, 256),
        num_classes=5,
        stem_type="fixed",
        stem_chs=32,
        conv_layer=partial(StdConv2d, eps=1e-8),
        norm_layer=GroupNormAct,
    )
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network.eval()


def test_own_layers_give_the_same_outputs_and_gradients_under_the_same_names(network: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64)
    upstream = torch.randn(2, 5)
    expected = network(images)
    gradients = torch.autograd.grad(expected, list(network.parameters()), upstream)
    names = [name for name, _ in network.named_parameters()]

    own = with_own_layers(network)
    kinds = {type(module) for module in own.modules()}
    assert WSConv2d in kinds
    assert any(issubclass(kind, GroupNorm) for kind in kinds)
    assert not any(kind.__name__ in ("StdConv2d", "GroupNormAct") for kind in kinds)
    assert [name for name, _ in own.named_parameters()] == names
    output = own(images)
    assert_close(output, expected.detach().double())
    for ours, theirs in zip(torch.autograd.grad(output, list(own.parameters()), upstream), gradients, strict=True):
        assert_close(ours, theirs.double())


def test_a_network_without_batch_norm_is_refused_with_the_norm_that_it_has(network: nn.Module) -> None:
    assert has_bit_layers(network)
    with pytest.raises(StudyError, match=r"bn of timm:x was asked for.*--norms gn\+ws"):
        require_batch_norm(network, "timm:x", "bn")
    plain = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert not has_bit_layers(plain)
    with pytest.raises(StudyError, match="Pass another model"):
        require_batch_norm(plain, "mine", "gn")
