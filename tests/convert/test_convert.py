from __future__ import annotations

import doctest
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from batchfree import reference
from batchfree.convert import Norm, _convert, convert
from batchfree.errors import ArgumentError, BatchfreeError, ConversionError
from batchfree.torch import GroupNorm, WSConv2d
from tests.closeness import assert_close


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def group_counts(model: nn.Module) -> list[int]:
    return [module.num_groups for module in model.modules() if isinstance(module, GroupNorm)]


@pytest.mark.parametrize(
    ("batch_norm", "x"),
    [
        (nn.BatchNorm1d(32), torch.randn(4, 32, 6)),
        (nn.BatchNorm2d(32), torch.randn(4, 32, 6, 5)),
        (nn.BatchNorm3d(32), torch.randn(4, 32, 3, 2, 4)),
        (nn.SyncBatchNorm(32), torch.randn(4, 32, 6, 5)),
    ],
)
@pytest.mark.parametrize(("norm", "num_groups"), [("gn", 2), ("ln", 1), ("in", 32)])
def test_every_batch_norm_becomes_the_norm_asked_for(
    batch_norm: Any, x: torch.Tensor, norm: Norm, num_groups: int
) -> None:
    with torch.no_grad():
        batch_norm.weight.normal_()
        batch_norm.bias.normal_()
    converted = convert(nn.Sequential(batch_norm), norm)
    expected = reference.group_norm(x, num_groups, batch_norm.weight.detach(), batch_norm.bias.detach())
    assert_close(converted(x), expected)


def test_a_norm_of_features_without_a_map_is_converted() -> None:
    x = torch.randn(4, 32)
    assert_close(convert(nn.Sequential(nn.BatchNorm1d(32)))(x), reference.group_norm(x, 2))


def test_the_original_is_untouched_and_shares_nothing() -> None:
    model = torchvision.models.resnet18(weights=None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    converted = convert(model, "gn", ws=True)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    assert len(batch_norms(model)) == 20
    assert batch_norms(converted) == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_state_dict_keys_of_weights_and_biases_stay() -> None:
    model = torchvision.models.resnet18(weights=None)
    parameters = dict(convert(model, "gn", ws="strict").named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameters[name], parameter)
    assert len(parameters) == len(dict(model.named_parameters()))


def test_keep_and_fresh_affine() -> None:
    model = nn.Sequential(nn.BatchNorm2d(16))
    nn.init.zeros_(model[0].weight)  # type: ignore[arg-type]
    nn.init.constant_(model[0].bias, 3.0)  # type: ignore[arg-type]
    kept: Any = convert(model, affine="keep")
    fresh: Any = convert(model, affine="fresh")
    assert kept[0].weight.tolist() == [0.0] * 16
    assert kept[0].bias.tolist() == [3.0] * 16
    assert fresh[0].weight.tolist() == [1.0] * 16
    assert fresh[0].bias.tolist() == [0.0] * 16


def test_a_norm_keeps_eps_dtype_training_flag_frozen_parameters_and_hooks() -> None:
    called = []
    norm = nn.BatchNorm2d(16, eps=0.25, dtype=torch.float64).eval()
    norm.weight.requires_grad_(False)
    norm.register_forward_hook(lambda *_: called.append("forward"))
    norm.register_forward_pre_hook(lambda *_, **__: called.append("before"), with_kwargs=True)
    plain = nn.BatchNorm2d(16, affine=False)
    converted: Any = convert(nn.Sequential(norm, plain), "gn")
    assert converted[0].eps == 0.25
    assert converted[0].weight.dtype == torch.float64
    assert not converted[0].training
    assert converted[1].training
    assert not converted[0].weight.requires_grad
    assert converted[0].bias.requires_grad
    assert converted[1].weight is None
    converted[0](torch.randn(1, 16, 2, 2, dtype=torch.float64))
    assert called == ["before", "forward"]


def test_backward_hooks_of_both_kinds_still_fire() -> None:
    called = []
    full, pre = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
    full.register_full_backward_hook(lambda *_: called.append("full"))
    pre.register_full_backward_pre_hook(lambda *_: called.append("pre"))
    converted = convert(nn.Sequential(full, pre))
    converted(torch.randn(1, 16, 2, 2, requires_grad=True)).square().sum().backward()
    assert called == ["pre", "full"]


def test_a_shared_norm_is_replaced_at_every_name_by_one_layer() -> None:
    norm = nn.BatchNorm2d(16)
    model = nn.Sequential(norm, nn.Sequential(nn.ReLU(), norm), norm)
    converted: Any = convert(model)
    assert batch_norms(converted) == []
    assert converted[0] is converted[2] is converted[1][1]


def test_tied_weights_stay_tied() -> None:
    first, second = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
    second.weight = first.weight
    converted: Any = convert(nn.Sequential(first, second))
    assert converted[0].weight is converted[1].weight


def test_a_model_that_is_itself_a_batch_norm_is_converted() -> None:
    assert isinstance(convert(nn.BatchNorm2d(16)), GroupNorm)


def test_groups_and_channels_per_group_reach_every_norm() -> None:
    model = nn.Sequential(nn.BatchNorm2d(32), nn.BatchNorm2d(64))
    assert group_counts(convert(model, num_groups=8)) == [8, 8]
    assert group_counts(convert(model, channels_per_group=8)) == [4, 8]
    assert group_counts(convert(model)) == [2, 4]


def test_auto_looks_at_the_maps_of_the_example() -> None:
    model = nn.Sequential(nn.BatchNorm2d(34))  # 2 and 17 divide it: groups of 17, or of 34
    assert group_counts(convert(model, example_inputs=torch.randn(1, 34, 1, 1))) == [2]
    narrow = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
    assert group_counts(convert(narrow, example_inputs=torch.randn(1, 3, 2, 2))) == [1]


def test_weight_standardization_goes_where_a_norm_follows_and_nowhere_else() -> None:
    model = torchvision.models.resnet18(weights=None)
    converted = convert(model, "gn", ws=True)
    plain = [name for name, module in converted.named_modules() if type(module) is nn.Conv2d]
    standardized = [name for name, module in converted.named_modules() if isinstance(module, WSConv2d)]
    assert plain == []
    assert len(standardized) == 20
    densenet = convert(torchvision.models.densenet121(weights=None), "gn", ws=True)
    # conv2 of a dense layer ends in a concatenation, which several norms read
    assert type(densenet.get_submodule("features.denseblock1.denselayer1.conv2")) is nn.Conv2d
    assert type(densenet.get_submodule("features.denseblock1.denselayer1.conv1")) is WSConv2d


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vgg11_bn"])
def test_torchvision_networks_train_at_batch_one_after_conversion(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None, num_classes=3)
    x = torch.randn(1, 3, 64, 64)
    converted = convert(model, "gn", ws=True, example_inputs=x)
    assert batch_norms(converted) == []
    converted.train()(x).square().sum().backward()
    for parameter_name, parameter in converted.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_timms_fused_activation_is_kept() -> None:
    model = timm.create_model("efficientnet_b0").eval()
    x = torch.randn(2, 3, 64, 64)
    converted = convert(model, "gn")
    assert batch_norms(converted) == []
    activated: Any = converted.get_submodule("bn1")
    maps = torch.randn(1, 32, 4, 4)
    assert_close(activated(maps), reference.group_norm(maps, 2, eps=activated.eps, activation="silu"))
    assert converted(x).shape == (2, 1000)


def test_every_reason_is_listed_by_name() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(nn.BatchNorm2d(6), nn.Sequential(Own(8)), nn.BatchNorm2d(8), nn.BatchNorm2d(10))
    with pytest.raises(ConversionError) as caught:
        convert(model, "gn", num_groups=4)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["0", "1.0", "3"]
    assert "Pass num_groups=3, or channels_per_group=2." in lines[0]


def test_one_value_per_group_on_the_example_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4), nn.BatchNorm2d(8))
    with pytest.raises(ConversionError, match="one value per sample"):
        convert(model, "in", example_inputs=torch.randn(2, 3, 4, 4))


def test_weight_standardization_refuses_what_it_cannot_do() -> None:
    fan_in_one = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ConversionError, match="fan-in"):
        convert(fan_in_one, ws=True)
    x = torch.randn(1, 3, 64, 64)
    unreached = torchvision.models.googlenet(weights=None, init_weights=False).eval()
    with pytest.raises(ConversionError, match=r"aux1\.conv\.bn: the data flow did not reach it"):
        convert(unreached, ws="strict", example_inputs=x)
    own_padding = timm.create_model("tf_efficientnet_b0")
    with pytest.raises(ConversionError, match="Conv2dSame"):
        convert(own_padding, ws="strict", example_inputs=x)
    kept = convert(own_padding, ws=True, example_inputs=x)  # there, a plain one changes nothing
    assert type(kept.get_submodule("conv_stem")) is type(own_padding.get_submodule("conv_stem"))
    assert isinstance(kept.get_submodule("blocks.0.0.conv_pw"), WSConv2d)


def test_a_model_that_does_not_know_its_sizes_is_refused_before_any_work() -> None:
    lazy = nn.Sequential(nn.BatchNorm2d(8), nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d())
    with pytest.raises(ConversionError, match=r"(?s)1 is a LazyConv2d.* Run the model once"):
        convert(lazy)
    with pytest.raises(ConversionError, match=r"1: it is lazy.* Run the model once"):
        convert(nn.Sequential(nn.Conv2d(3, 8, 3), lazy[2]))
    lazy(torch.randn(2, 8, 5, 5))
    assert group_counts(convert(lazy)) == [1, 1]


def test_a_model_without_batch_norm_is_refused() -> None:
    with pytest.raises(ConversionError, match="no Batch Norm"):
        convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"norm": "bn"},
        {"affine": "new"},
        {"ws": "no"},
        {"fuse": "no"},
        {"groups": "automatic"},
        {"groups": 4},
        {"groups": {"1": 4}},
        {"num_groups": 0},
        {"num_groups": 4, "channels_per_group": 4},
        {"num_groups": 4, "groups": {"0": 4}},
        {"norm": "ln", "num_groups": 4},
        {"optimizer": "sgd"},
        {"norm": "in", "channels_per_group": 4},
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(BatchfreeError):
        convert(nn.Sequential(nn.BatchNorm2d(16)), **arguments)


def test_something_that_is_no_module_is_refused() -> None:
    with pytest.raises(ArgumentError):
        convert("resnet18")  # type: ignore[arg-type]


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(_convert).failed == 0
