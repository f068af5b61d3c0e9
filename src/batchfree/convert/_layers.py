"""The layer that takes the place of one Batch Norm."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from batchfree.convert._activations import activation_of_layer
from batchfree.convert._kinds import BatchNormFacts
from batchfree.torch import Activation, GroupNorm

__all__ = ["Affine", "GroupNormAct", "group_norm_for", "own_activation"]

#: "keep": weight and bias of the old norm; "fresh": ones and zeros.
Affine: TypeAlias = Literal["keep", "fresh"]


class GroupNormAct(GroupNorm):
    """Group Norm with the `drop` and `act` layers of a timm `BatchNormAct2d`, under the same names."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalises `input`, and applies `drop` and `act` to the result."""
        return self.act(self.drop(super().forward(input, residual)))


def own_activation(facts: BatchNormFacts) -> tuple[Activation | None, str]:
    """The activation of a timm norm that its Group Norm can compute itself, or why it cannot."""
    act = facts.layers.get("act")
    if act is None or type(act) is nn.Identity:
        return None, ""
    if type(facts.layers.get("drop", nn.Identity())) not in (nn.Identity, type(None)):
        return None, "its drop layer stands between it and its activation"
    activation = activation_of_layer(act)
    return activation, "" if activation else f"its activation {type(act).__name__} is not ReLU, SiLU or GELU"


def group_norm_for(
    norm: nn.Module,
    facts: BatchNormFacts,
    num_groups: int,
    affine: Affine,
    activation: Activation | None,
    fresh: dict[Tensor, nn.Parameter],
) -> GroupNorm:
    """The layer for `norm`, whose Parameters, hooks and layers it takes over.

    Args:
        norm: of the copy: nothing of it stays in use elsewhere.
        activation: that it computes itself; the `act` layer of a timm norm then becomes an `nn.Identity`.
        fresh: new parameters by the old ones, so that tied ones stay tied; extended.
    """
    assert facts.channels is not None
    converted = (GroupNormAct if facts.layers else GroupNorm)(
        num_groups, facts.channels, facts.eps, affine=False, activation=activation
    )
    converted.affine = facts.weight is not None
    for name, old in (("weight", facts.weight), ("bias", facts.bias)):
        if old is not None:
            converted.register_parameter(name, _parameter(name, old, affine, fresh))
    for name, layer in facts.layers.items():
        is_idle = name == "act" and own_activation(facts)[0] is not None and activation is not None
        converted.add_module(name, nn.Identity() if is_idle else layer)
    if isinstance(converted, GroupNormAct):  # timm's synchronised norm may lack one
        for name in ("drop", "act"):
            if name not in converted._modules:
                converted.add_module(name, nn.Identity())
    _carry_hooks(norm, converted)
    converted.training = norm.training
    return converted


def _parameter(name: str, old: Tensor, affine: Affine, fresh: dict[Tensor, nn.Parameter]) -> nn.Parameter:
    if affine == "keep" and isinstance(old, nn.Parameter):
        return old  # itself: tied ones stay tied
    if old not in fresh:
        new = old.detach() if affine == "keep" else (torch.ones_like if name == "weight" else torch.zeros_like)(old)
        fresh[old] = nn.Parameter(new, requires_grad=old.requires_grad)
    return fresh[old]


def _carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Forward and backward hooks; a lazy norm's own ones, which would set its sizes, stay behind."""
    own = set()
    if isinstance(old, LazyModuleMixin):
        own = {handle.id for handle in (getattr(old, "_initialize_hook", None),) if handle is not None}
    for name, value in old.__dict__.items():
        if "_hook" in name and "state_dict" not in name and name not in ("_initialize_hook", "_load_hook"):
            if isinstance(value, dict):
                value = type(value)((key, hook) for key, hook in value.items() if key not in own)
            new.__dict__[name] = value
