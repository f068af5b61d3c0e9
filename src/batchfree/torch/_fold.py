"""Standardised convolutions folded back into plain ones."""

from __future__ import annotations

import copy
from typing import TypeVar, overload

import torch
from torch import nn

from batchfree.torch._weight_standardization import StandardizedConv, WSConv1d, WSConv2d, WSConv3d

__all__ = ["fold"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@overload
def fold(module: WSConv1d) -> nn.Conv1d: ...
@overload
def fold(module: WSConv2d) -> nn.Conv2d: ...
@overload
def fold(module: WSConv3d) -> nn.Conv3d: ...
@overload
def fold(module: ModuleT) -> ModuleT: ...
def fold(module: nn.Module) -> nn.Module:
    """A copy of `module` for inference, in which every `WSConv*d` is a plain convolution of the same function.

    Args:
        module: a `WSConv*d`, or a network that holds some; left as it is.

    Returns:
        A deep copy; a plain convolution where `module` itself is a `WSConv*d`. Tied convolutions stay tied.

    >>> network = nn.Sequential(WSConv2d(3, 8, 3), nn.ReLU())
    >>> type(fold(network)[0]).__name__
    'Conv2d'
    """
    folded = copy.deepcopy(module)
    if isinstance(folded, StandardizedConv):
        return _plain_convolution(folded)
    plain: dict[StandardizedConv, nn.Module] = {}
    for parent in list(folded.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips a second name of the same module
            if isinstance(child, StandardizedConv):
                setattr(parent, name, plain.setdefault(child, _plain_convolution(child)))
    return folded


def _plain_convolution(conv: StandardizedConv) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    # Shares the attributes instead of building a layer anew: hooks, padding mode, training flag and dtype come along.
    plain = conv.plain.__new__(conv.plain)
    plain.__dict__ = {key: value for key, value in conv.__dict__.items() if key not in ("variant", "eps")}
    plain._parameters = {key: value for key, value in conv._parameters.items() if key not in ("gain", "offset")}
    with torch.no_grad():
        weight = conv.standardized_weight()
    plain.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    return plain
