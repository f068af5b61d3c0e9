from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision.models
from safetensors.torch import save_file
from torch import nn

from batchfree.errors import MissingExtraError, StudyError
from batchfree.study._library_models import _names
from batchfree.study._models import MODELS, build_model, check_model_name, model_channels
from batchfree.study._small_resnet import BasicBlock


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def seeded(name: str, **settings: bool | None) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, in_channels=3, num_classes=5, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "norms", "parameters"),
    # He et al. 2016, Table 6: 0.27, 0.46, 0.66 and 0.85 M; 288 fewer for one input channel instead of three
    [
        ("resnet8", 7, 75_290 - 288),
        ("resnet14", 13, 172_506 - 288),
        ("resnet20", 19, 269_722 - 288),
        ("resnet32", 31, 464_154 - 288),
        ("resnet44", 43, 658_586 - 288),
        ("resnet56", 55, 853_018 - 288),
    ],
)
def test_residual_networks_are_those_of_the_paper(name: str, norms: int, parameters: int) -> None:
    model = build_model(name, in_channels=1, num_classes=10)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == norms
    assert convolutions + 1 == int(name.removeprefix("resnet"))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_the_small_vgg_is_vgg16_at_a_quarter_of_its_width() -> None:
    ours = build_model("vgg16-small", in_channels=3, num_classes=10)
    with torch.device("meta"):  # 138 million weights that nobody looks at
        theirs = torchvision.models.vgg16_bn()
    kept = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)
    layers, wanted = (
        [module for module in model.features.modules() if isinstance(module, kept)]  # type: ignore[union-attr]
        for model in (ours, theirs)
    )
    assert [type(layer) for layer in layers] == [type(layer) for layer in wanted]
    widths, full_widths = (
        [layer.out_channels for layer in part if isinstance(layer, nn.Conv2d)] for part in (layers, wanted)
    )
    assert [4 * width for width in widths] == full_widths
    assert len(widths) == 13


@pytest.mark.parametrize("side", [8, 28, 32, 64])
def test_the_small_vgg_takes_images_of_any_side(side: int) -> None:
    model = build_model("vgg16-small", in_channels=1, num_classes=10)
    assert model(torch.randn(2, 1, side, side)).shape == (2, 10)


def test_a_block_begins_as_its_shortcut_unless_it_adds_channels() -> None:
    model = build_model("resnet8", in_channels=3, num_classes=10).eval()
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    x = torch.rand(1, 16, 8, 8)
    assert torch.equal(blocks[0](x), x)
    torch.nn.init.zeros_(blocks[1].norm2.weight)  # what is left of the block is its shortcut
    wider = blocks[1](x)
    assert torch.equal(wider[:, :16], x[:, :, ::2, ::2])
    assert wider[:, 16:].eq(0).all()


def test_zero_gamma_changes_the_last_norm_of_each_block_that_adds_no_channels() -> None:
    default, zero, one = (seeded("resnet8", zero_gamma=zero).state_dict() for zero in (None, True, False))
    for key, value in one.items():
        assert torch.equal(default[key], zero[key])
        if key == "blocks.0.norm2.weight":  # the two others add channels
            assert value.eq(1).all()
            assert zero[key].eq(0).all()
        else:
            assert torch.equal(value, zero[key])


def test_every_channel_of_a_fresh_network_learns() -> None:
    # A channel that begins as relu(0) has no gradient, so that it would stay 0 for ever.
    network = seeded("resnet20")
    network(torch.randn(8, 3, 16, 16)).square().sum().backward()
    lasts = {name: value.grad for name, value in network.named_parameters() if name.endswith("norm2.weight")}
    assert len(lasts) == 9
    assert all(slope is not None and slope.ne(0).all() for slope in lasts.values()), lasts


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("zero", [None, True, False])
def test_zero_gamma_is_torchvisions_own(name: str, zero: bool | None) -> None:
    torch.manual_seed(0)
    settings = {} if zero is None else {"zero_init_residual": zero}
    theirs = torchvision.models.get_model(name, num_classes=5, **settings)
    assert same(seeded(f"torchvision:{name}", zero_gamma=zero), theirs)


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002", "resnetv2_18"])
@pytest.mark.parametrize("zero", [None, True, False])
def test_zero_gamma_is_timms_own(name: str, zero: bool | None) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {} if zero is None else {"zero_init_last": zero}
    theirs = timm.create_model(name, num_classes=5, **settings)
    assert same(seeded(f"timm:{name}", zero_gamma=zero), theirs)


@pytest.mark.parametrize("name", ["vgg16-small", "torchvision:squeezenet1_1", "timm:mobilenetv3_small_050"])
def test_zero_gamma_without_residual_blocks_is_refused(name: str) -> None:
    with pytest.raises(StudyError, match="no residual blocks"):
        seeded(name, zero_gamma=True)
    assert same(seeded(name, zero_gamma=False), seeded(name))


def test_channels_are_those_that_the_network_takes() -> None:
    for name, wanted in (("resnet8", 1), ("timm:resnet10t", 1), ("torchvision:squeezenet1_1", 3)):
        channels = model_channels(name, 1)
        assert channels == wanted
        model = build_model(name, in_channels=channels, num_classes=7).eval()
        assert model(torch.randn(2, channels, 64, 64)).shape == (2, 7)
    with pytest.raises(StudyError, match="torchvision's networks take 3"):
        build_model("torchvision:resnet18", in_channels=1, num_classes=7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_network_with_side_outputs_gives_one_output_in_training(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(f"torchvision:{name}", in_channels=3, num_classes=4)
    assert model.training
    assert isinstance(model(torch.randn(2, 3, 96, 96)), torch.Tensor)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("resnet-20", "Did you mean resnet20"),
        ("alexnet", "torchvision:NAME and timm:NAME"),
        ("torchvision:resnet-18", "Did you mean .*torchvision:resnet18"),
        ("timm:resnet18b", "Did you mean .*timm:resnet18"),
        ("timm:hf-hub:someone/something", "unknown model"),
        ("timm:resnet18.no_such_tag", "unknown model"),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown model"),
        ("torchvision:", "list_models"),
        ("keras:resnet50", "unknown model"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(given: str, said: str) -> None:
    with pytest.raises(StudyError, match=said) as caught:
        check_model_name(given)
    assert len(str(caught.value)) < 400
    with pytest.raises(StudyError):
        build_model(given, in_channels=3, num_classes=10)


def test_known_names_pass_the_check() -> None:
    for name in (*MODELS, "torchvision:resnet50", "timm:resnet50", "timm:resnet50.a1_in1k", "timm:resnetv2_50x1_bit"):
        check_model_name(name)


def test_a_library_that_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    _names.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'batchfree\[models\]'"):
        check_model_name("timm:resnet18")


def test_weights_are_not_mixed_with_what_is_for_fresh_ones(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(seeded("resnet8").state_dict(), path)
    with pytest.raises(StudyError, match="Leave one of them out"):
        build_model("resnet8", in_channels=3, num_classes=5, zero_gamma=False, weights=str(path))
    with pytest.raises(StudyError, match="nobody publishes"):
        build_model("resnet8", in_channels=3, num_classes=5, weights="pretrained")
    torch.manual_seed(1)
    assert same(build_model("resnet8", in_channels=3, num_classes=5, weights=str(path)), seeded("resnet8"))


def test_torchvisions_weights_are_taken_from_its_cache_but_for_the_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = torchvision.models.squeezenet1_1()
    file = tmp_path / "hub" / "checkpoints" / torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(published.state_dict(), file)
    model = build_model("torchvision:squeezenet1_1", in_channels=3, num_classes=5, weights="pretrained")
    assert same(model.features, published.features)  # type: ignore[arg-type]
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_densenets_weights_are_found_under_the_names_they_were_published_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = torchvision.models.densenet121()
    old = {}
    for key, value in published.state_dict().items():
        for present in ("norm1", "norm2", "conv1", "conv2"):
            key = key.replace(f".{present}.", f".{present[:-1]}.{present[-1]}.")
        if not key.endswith("num_batches_tracked"):
            old[key] = value
    file = tmp_path / "hub" / "checkpoints" / torchvision.models.DenseNet121_Weights.DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(old, file)
    model = build_model("torchvision:densenet121", in_channels=3, num_classes=5, weights="pretrained")
    assert same(model.features, published.features)  # type: ignore[arg-type]


def test_weights_that_cannot_be_fetched_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(StudyError, match=rf"squeezenet1_1-.*\.pth, kept in {tmp_path}.*\.safetensors"):
        build_model("torchvision:squeezenet1_1", in_channels=3, num_classes=5, weights="pretrained")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # else it tries again for 50 s
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(StudyError, match=rf"timm:resnet10t could not be had.*{tmp_path}/hub.*\.safetensors"):
        build_model("timm:resnet10t", in_channels=3, num_classes=5, weights="pretrained")
    with pytest.raises(StudyError, match="could not be had"):
        build_model("timm:resnetv2_18", in_channels=3, num_classes=5, weights="pretrained")  # nobody published any


def test_timms_weights_are_taken_from_its_cache_but_for_the_classifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    published = timm.create_model("mobilenetv3_small_050")
    folder = tmp_path / "models--timm--mobilenetv3_small_050.lamb_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(published.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    model = build_model("timm:mobilenetv3_small_050", in_channels=3, num_classes=5, weights="pretrained")
    assert same(model.blocks, published.blocks)  # type: ignore[arg-type]
    assert model.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 5)
