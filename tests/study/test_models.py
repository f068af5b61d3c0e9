from __future__ import annotations

import pytest
import torch
from torch import nn

from batchfree.errors import StudyError
from batchfree.study._models import BasicBlock, build_model


@pytest.mark.parametrize(
    ("name", "norms", "parameters"), [("resnet8", 7, 75_290 - 288), ("resnet20", 19, 269_722 - 288)]
)
def test_networks_are_those_of_the_paper(name: str, norms: int, parameters: int) -> None:
    # He et al. 2016, Table 6: ResNet-20 has 0.27 M parameters; 288 fewer for one input channel instead of three.
    model = build_model(name, in_channels=1, num_classes=10)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == norms
    assert convolutions + 1 == int(name.removeprefix("resnet"))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_each_block_begins_as_its_shortcut() -> None:
    model = build_model("resnet8", in_channels=3, num_classes=10).eval()
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    assert all(block.norm2.weight.eq(0).all() for block in blocks)
    x = torch.rand(1, 16, 8, 8)
    assert torch.equal(blocks[0](x), x)
    wider = blocks[1](x)
    assert torch.equal(wider[:, :16], x[:, :, ::2, ::2])
    assert wider[:, 16:].eq(0).all()


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(StudyError, match="Did you mean resnet20"):
        build_model("resnet-20", in_channels=3, num_classes=10)
