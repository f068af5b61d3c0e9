"""Which activations a Group Norm can take into itself, in every way a network writes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from batchfree.torch import Activation

__all__ = ["activation_of_call", "activation_of_layer"]

_LAYERS: dict[str, Activation] = {
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.GELU": "gelu",
    "timm.layers.activations.GELUTanh": "gelu_tanh",
}
_FUNCTIONS: dict[object, Activation] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.silu: "silu",
}
_METHODS: dict[str, Activation] = {"relu": "relu", "relu_": "relu"}


def activation_of_layer(layer: nn.Module) -> Activation | None:
    """The activation that `layer` applies and nothing else; `None` where it is another or has hooks."""
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return None
    if type(layer) is nn.GELU:
        return _gelu(layer.approximate)
    return _LAYERS.get(f"{type(layer).__module__}.{type(layer).__qualname__}")


def activation_of_call(node: fx.Node, owner: nn.Module) -> Activation | None:
    """The activation that `node` of the graph of `owner` applies to its first argument and nothing else."""
    if node.op == "call_module":
        return activation_of_layer(owner.get_submodule(str(node.target)))
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    if node.op == "call_function":
        if node.target is F.gelu:
            return _gelu(str(node.kwargs.get("approximate", "none")))
        return _FUNCTIONS.get(node.target)
    return None


def _gelu(approximate: str) -> Activation | None:
    forms: dict[str, Activation] = {"none": "gelu", "tanh": "gelu_tanh"}
    return forms.get(approximate)
