"""The networks of torchvision and timm that hold Batch Norm, and one call's inputs for each.

tests/convert/test_every_network.py checks that the lists are complete.
"""

from __future__ import annotations

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
    if name in ("googlenet", "inception_v3"):
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


def timm_inputs(model: nn.Module, size: int) -> tuple[Tensor, ...]:
    """What one call of a timm network takes."""
    channels: int = timm.data.resolve_model_data_config(model)["input_size"][0]
    return (pixels(1, channels, size, size),)


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
