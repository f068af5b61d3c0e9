"""The last gamma of each residual block: 0, so that the block begins as its shortcut, or 1."""

from __future__ import annotations

import torch
from torch import nn

from batchfree.errors import StudyError

__all__ = ["set_zero_gamma"]


def set_zero_gamma(model: nn.Module, zero: bool, name: str) -> None:
    """Sets the weight of the last norm of each residual block of a fresh network to 0 or to 1.

    Args:
        name: the network's, for the message.

    Raises:
        StudyError: 0 was asked for, and the network has no residual block that knows its last norm.
    """
    if not zero:
        for norm in _zero_norms(model):
            nn.init.ones_(norm)
        return
    blocks = [module for module in model.modules() if callable(getattr(module, "zero_init_last", None))]
    for block in blocks:
        block.zero_init_last()  # type: ignore[operator]
    lasts = [] if blocks else _torchvision_lasts(model, name)
    for last in lasts:
        nn.init.zeros_(last)
    if not blocks and not lasts and not _zero_norms(model):
        raise StudyError(
            f"zero_gamma=True was given for {name}, which has no residual blocks that end in a norm. Residual networks "
            f"have them: ours, torchvision's ResNets, many of timm's. Leave it out, or pass another network."
        )


def _zero_norms(model: nn.Module) -> list[nn.Parameter]:
    """Weights of norms that are 0 throughout; nothing but this initialisation makes one so."""
    weights = (getattr(module, "weight", None) for module in model.modules())
    return [
        weight
        for weight in weights
        if isinstance(weight, nn.Parameter) and weight.ndim == 1 and weight.numel() > 0 and bool(weight.eq(0).all())
    ]


def _torchvision_lasts(model: nn.Module, name: str) -> list[torch.Tensor]:
    if not name.startswith("torchvision:"):
        return []
    from torchvision.models.resnet import BasicBlock, Bottleneck

    lasts = []
    for module in model.modules():
        if isinstance(module, Bottleneck):
            lasts.append(module.bn3.weight)
        elif isinstance(module, BasicBlock):
            lasts.append(module.bn2.weight)
    return lasts
