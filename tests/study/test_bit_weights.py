from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from timm.models.resnetv2 import ResNetV2
from torch import nn

from batchfree.errors import StudyError
from batchfree.study._bit_weights import load_bit_weights
from batchfree.study._models import build_model

Arrays = dict[str, np.ndarray[Any, Any]]


def network(classes: int = 5, layers: tuple[int, ...] = (1, 2, 1, 1), seed: int = 0, **settings: Any) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = ResNetV2(
        layers, channels=(128, 128, 128, 256), stem_chs=32, num_classes=classes, stem_type="fixed", **settings
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def published(classes: int = 5) -> Arrays:
    """Arrays named and shaped as in BiT's files, for the network above."""
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {
        "resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 32),
        "resnet/group_norm/gamma": (256,),
        "resnet/group_norm/beta": (256,),
        "resnet/head/conv2d/kernel": (1, 1, 256, classes),
        "resnet/head/conv2d/bias": (classes,),
    }
    before = 32
    for block, (units, width) in enumerate(((1, 128), (2, 128), (1, 128), (1, 256)), 1):
        for unit in range(1, units + 1):
            place, inner = f"resnet/block{block}/unit{unit:02d}/", width // 4
            ways = {"a": (1, before, inner), "b": (3, inner, inner), "c": (1, inner, width)}
            for letter, (side, channels, out) in ways.items():
                shapes[f"{place}{letter}/standardized_conv2d/kernel"] = (side, side, channels, out)
                shapes[f"{place}{letter}/group_norm/gamma"] = (channels,)
                shapes[f"{place}{letter}/group_norm/beta"] = (channels,)
            if unit == 1:
                shapes[f"{place}a/proj/standardized_conv2d/kernel"] = (1, 1, before, width)
            before = width
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "BiT-M.npz"
    np.savez(path, **published())
    return path


def test_the_result_is_that_of_timms_own_loader(file: Path) -> None:
    ours, theirs = network(seed=1), network(seed=2)
    load_bit_weights(ours, file)
    with torch.no_grad():
        theirs.load_pretrained(str(file))  # type: ignore[operator]
    for (name, mine), wanted in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, wanted), name
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_a_head_for_other_classes_stays_fresh(file: Path) -> None:
    model, untouched = network(classes=9), network(classes=9)
    load_bit_weights(model, file)
    assert torch.equal(model.head.fc.weight, untouched.head.fc.weight)  # type: ignore[union-attr,arg-type]
    assert torch.equal(model.norm.bias, torch.from_numpy(published()["resnet/group_norm/beta"]))  # type: ignore[union-attr,arg-type]


def renamed(before: str, after: str) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[after] = arrays.pop(before)

    return change


def reshaped(name: str, *shape: int) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda arrays: arrays.pop("resnet/group_norm/beta"), "resnet/group_norm/beta is missing"),
        (lambda arrays: arrays.pop("resnet/head/conv2d/bias"), "resnet/head/conv2d/bias is missing"),
        (
            renamed("resnet/block2/unit02/a/group_norm/gamma", "resnet/block2/unit03/a/group_norm/gamma"),
            "unit02/a/group_norm/gamma is missing; resnet/block2/unit03/a/group_norm/gamma is unknown",
        ),
        (
            reshaped("resnet/block1/unit01/c/standardized_conv2d/kernel", 1, 1, 128, 32),
            r"\(1, 1, 128, 32\) for \(1, 1, 32",
        ),
        (reshaped("resnet/head/conv2d/kernel", 1, 1, 128, 7), r"\(1, 1, 128, 7\) for \(1, 1, 256, 5\)"),
        (reshaped("resnet/head/conv2d/bias", 7), r"bias is float32 \(7,\) for \(5,\)"),
        (lambda arrays: arrays.update({"resnet/group_norm/beta": np.zeros(256, np.int64)}), "beta is int64"),
    ],
)
def test_a_file_of_another_architecture_is_refused_and_changes_nothing(
    tmp_path: Path, change: Callable[[Arrays], None], said: str
) -> None:
    arrays = published()
    change(arrays)
    np.savez(tmp_path / "other.npz", **arrays)  # type: ignore[arg-type]
    model, untouched = network(), network()
    with pytest.raises(StudyError, match=said):
        load_bit_weights(model, tmp_path / "other.npz")
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), untouched.parameters(), strict=True))


def test_objects_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, **{**published(), "resnet/group_norm/beta": np.array([print], dtype=object)})  # type: ignore[arg-type]
    with pytest.raises(StudyError, match=r"cannot be read.*allow_pickle"):
        load_bit_weights(network(), path)
    np.savez(path, **published())  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StudyError, match="cannot be read"):
        load_bit_weights(network(), path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(StudyError, match="cannot be read"):
        load_bit_weights(network(), path)


def test_networks_that_bit_did_not_train_are_refused(file: Path) -> None:
    for model in (
        network(norm_layer=BatchNormAct2d),
        timm.create_model("resnet18", num_classes=5),
        build_model("resnet8", in_channels=3, num_classes=5),
    ):
        with pytest.raises(StudyError, match="Pass timm:resnetv2_50x1_bit"):
            load_bit_weights(model, file)


def test_a_network_is_built_with_a_file_by_its_name(file: Path) -> None:
    with pytest.raises(StudyError, match=r"BiT-M\.npz does not fit.*fits timm:resnetv2_50x1_bit"):
        build_model("timm:resnetv2_50x1_bit", in_channels=3, num_classes=5, weights=str(file))
