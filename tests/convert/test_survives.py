"""What of a network survives its conversion, and that the original does whole."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from batchfree.convert import convert, plan_conversion


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything that a conversion could change, bit for bit."""
    tensors = {
        name: (id(value), value.clone(), value._version) for name, value in model.state_dict(keep_vars=True).items()
    }
    modules = {
        name: (id(module), type(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    return {"tensors": tensors, "modules": modules, "random": torch.get_rng_state()}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_the_original_is_bit_for_bit_what_it_was() -> None:
    model = torchvision.models.mobilenet_v3_small(weights=None)  # has dropout
    model.features[3].eval()
    x = torch.randn(2, 3, 64, 64)
    before = snapshot(model)
    plan_conversion(model)
    plan_conversion(model, x)
    convert(model, example_inputs=x, ws=True, fuse=True)
    assert same(snapshot(model), before)
    model(x)
    assert not same(snapshot(model), before)  # the check sees a run


def test_parameters_that_are_not_replaced_are_equal_and_in_their_memory_format() -> None:
    model = torchvision.models.resnet18(weights=None).to(memory_format=torch.channels_last)
    model.conv1.weight.requires_grad_(False)
    model.layer1.eval()
    x = torch.randn(1, 3, 64, 64).to(memory_format=torch.channels_last)
    converted: Any = convert(model, example_inputs=x, ws=True, fuse=True)
    parameters = dict(converted.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameters[name], parameter)
        assert parameters[name].stride() == parameter.stride()
        assert parameters[name].requires_grad == parameter.requires_grad
    assert not converted.conv1.gain.requires_grad
    assert converted.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    seen: list[bool] = []
    converted.layer4.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    converted(x)
    assert seen == [True]
    modes = {name: module.training for name, module in model.named_modules()}
    assert {name: module.training for name, module in converted.named_modules() if name in modes} == modes


def test_mixed_dtypes_stay_and_run() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))
    model.bfloat16()
    model[1].float()
    converted: Any = convert(model, num_groups=4, example_inputs=torch.randn(1, 3, 8, 8, dtype=torch.bfloat16), ws=True)
    assert converted[1].weight.dtype is torch.float32
    assert converted[4].weight.dtype is torch.bfloat16
    x = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    found = converted(x)
    exact = [parameter.double() for parameter in model.parameters()]
    y = F.relu(F.group_norm(F.conv2d(x.double(), exact[0], exact[1]), 4, exact[2], exact[3]))
    expected = F.group_norm(F.conv2d(y, exact[4], exact[5]), 4, exact[6], exact[7])
    assert found.dtype is torch.bfloat16
    assert (found.double() - expected).abs().max() < 0.1 * expected.abs().max()


def test_parametrised_convolutions_keep_their_parametrisation() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 16, 3))
    model = nn.Sequential(normed, nn.BatchNorm2d(16), nn.ReLU())
    converted: Any = convert(model, fuse=True)
    assert nn.utils.parametrize.is_parametrized(converted[0], "weight")
    assert converted.state_dict().keys() <= model.state_dict().keys()
    x = torch.randn(1, 3, 6, 6)
    assert torch.allclose(converted(x), F.relu(F.group_norm(normed(x), 1)), atol=1e-5)
    converted[0].parametrizations.weight.original0.data.mul_(2)
    assert not torch.allclose(converted[0](x), normed(x))


def test_tied_convolutions_share_one_standardised_layer_and_tied_weights_stay_tied() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    other = nn.Conv2d(8, 8, 3, padding=1)
    other.weight = conv.weight
    norms = [nn.BatchNorm2d(8) for _ in range(3)]
    model = nn.Sequential(conv, norms[0], conv, norms[1], other, norms[2])
    x = torch.randn(1, 8, 6, 6)
    for ws in (True, "strict"):
        converted: Any = convert(model, ws=ws, example_inputs=x)
        assert converted[0] is converted[2]
        assert converted[0].weight is converted[4].weight
        if ws is True:
            assert torch.allclose(converted(x), convert(model)(x), atol=1e-5)


def test_preserved_filters_change_nothing_and_strict_ones_what_follows_without_a_norm_scale() -> None:
    model = torchvision.models.resnet18(weights=None).double()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data += 0.05  # strict standardisation removes this mean
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    plain, preserved, strict = (convert(model, ws=ws)(x) for ws in (False, True, "strict"))
    assert torch.allclose(preserved, plain, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(strict, plain, rtol=0.1)
