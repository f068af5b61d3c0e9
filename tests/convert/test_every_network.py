"""torchvision's and timm's networks with Batch Norm: each is planned, converted and trained at batch 1."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from batchfree.convert import plan_conversion
from tests.convert.networks import smallest_timm_network, timm_inputs, torchvision_inputs, torchvision_network
from tests.convert.sweep import check_conversion

#: Of each kind the quickest.
QUICK = ("resnet18", "shufflenet_v2_x0_5", "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large")
TIMM_QUICK = ("resnet10t", "lcnet_035", "test_efficientnet")


def check_torchvision(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision_network(name)
    if not any("BatchNorm" in type(module).__name__ for module in model.modules()):
        assert "no Batch Norm" in plan_conversion(model).reasons[0]
        return
    check_conversion(model, torchvision_inputs(name))


@pytest.mark.parametrize("name", QUICK)
def test_quick_networks_of_torchvision(name: str) -> None:
    check_torchvision(name)


@pytest.mark.parametrize("name", TIMM_QUICK)
def test_quick_networks_of_timm(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    check_conversion(model, timm_inputs(model))


@pytest.mark.long
@pytest.mark.parametrize("name", torchvision.models.list_models())
def test_every_network_of_torchvision(name: str) -> None:
    check_torchvision(name)


@pytest.mark.long
@pytest.mark.parametrize("module", timm.list_modules())
def test_the_smallest_network_with_batch_norm_of_every_module_of_timm(module: str) -> None:
    name = smallest_timm_network(module)
    if name is None:
        return  # this module's networks have no Batch Norm
    torch.manual_seed(0)
    model = timm.create_model(name)
    check_conversion(model, timm_inputs(model))
