"""The networks of torchvision and timm, and one call's inputs for each."""

from __future__ import annotations

import copy
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

DETECTORS = ("rcnn", "retinanet", "fcos", "ssd")
SEGMENTERS = ("fcn", "deeplabv3", "lraspp")


def torchvision_network(name: str) -> nn.Module:
    """The network of that name with random weights."""
    options: dict[str, Any] = {"weights": None}
    if any(part in name for part in (*DETECTORS, *SEGMENTERS)):
        options["weights_backbone"] = None
    if name.endswith(("googlenet", "inception_v3")):
        options["init_weights"] = False  # drawing them from scipy takes a minute
    if "rcnn" in name or "retinanet" in name or "fcos" in name:
        options |= {"min_size": 64, "max_size": 64}
    if name.startswith(("maskrcnn", "keypointrcnn")):
        options["num_classes"] = 2
    model: nn.Module = torchvision.models.get_model(name, **options)
    return model


def torchvision_inputs(name: str) -> tuple[Any, ...]:
    """What one training call of it takes."""
    if any(part in name for part in DETECTORS):
        return [pixels(3, 64, 64)], [_target(name)]
    if name.startswith("raft"):
        return pixels(1, 3, 128, 128), pixels(1, 3, 128, 128)
    if name.startswith(("r3d", "mc3", "r2plus1d")):
        return (pixels(1, 3, 4, 32, 32),)
    if name == "s3d":
        return (pixels(1, 3, 16, 224, 224),)
    size = next((size for part, size in (("inception", 299), ("maxvit", 224)) if part in name), 64)
    return (pixels(1, 3, size, size),)


def smallest_timm_network(module: str) -> str | None:
    """Of the networks of a module of timm that hold Batch Norm, the one with the fewest parameters."""
    sizes = {}
    for name in timm.list_models(module=module):
        with torch.device("meta"):  # no memory, no random numbers
            model = timm.create_model(name)
        if any("BatchNorm" in type(layer).__name__ for layer in model.modules()):
            sizes[name] = sum(parameter.numel() for parameter in model.parameters())
    return min(sizes, key=lambda name: sizes[name], default=None)


def timm_inputs(model: nn.Module) -> tuple[Tensor, ...]:
    """What one call of a timm network takes, at the smallest size that it runs on."""
    data: Any = timm.data
    channels, _, own_size = data.resolve_model_data_config(model)["input_size"]
    for size in (64, 128):
        images = pixels(1, channels, size, size)
        try:
            with torch.no_grad():
                copy.deepcopy(model).eval()(images)
        except (RuntimeError, AssertionError, ValueError):  # too small for it, or not its one size
            continue
        return (images,)
    return (pixels(1, channels, own_size, own_size),)


def pixels(*shape: int) -> Tensor:
    """Numbers that are the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _target(name: str) -> dict[str, Tensor]:
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    if name.startswith("maskrcnn"):
        target["masks"] = torch.ones(1, 64, 64, dtype=torch.uint8)
    if name.startswith("keypointrcnn"):
        target["keypoints"] = torch.tensor([[[8.0, 8.0, 1.0]]]).expand(1, 17, 3).clone()
    return target
