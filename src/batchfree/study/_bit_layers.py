"""timm's Big Transfer networks, built with Group Norm and standardised convolutions, in batchfree's layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchfree.errors import StudyError
from batchfree.torch import GroupNorm, WSConv2d

__all__ = ["has_bit_layers", "require_batch_norm", "with_own_layers"]


def has_bit_layers(network: nn.Module) -> bool:
    """Whether the network has timm's `StdConv2d` and `GroupNormAct`, and no Batch Norm."""
    names = {type(module).__name__ for module in network.modules() if _is_timm(module)}
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in network.modules())
    return {"StdConv2d", "GroupNormAct"} <= names and not has_batch_norm


def with_own_layers(network: nn.Module) -> nn.Module:
    """`network` with `WSConv2d` and `GroupNorm` in place of timm's layers: same parameters, names and outputs."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if _is_timm(child) and type(child).__name__ == "StdConv2d":
                setattr(parent, name, _standardized(child))
            elif _is_timm(child) and type(child).__name__ == "GroupNormAct":
                setattr(parent, name, _GroupNormAct.like(child))
    return network


def require_batch_norm(network: nn.Module, model: str, norm: str) -> None:
    """Refuses a network from which the arm `norm` cannot be made.

    Raises:
        StudyError: the network has no Batch Norm.
    """
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        return
    hint = "Pass --norms gn+ws, which it is built with" if has_bit_layers(network) else "Pass another model"
    raise StudyError(
        f"{norm} of {model} was asked for, and the model has no Batch Norm to make it from. A model that is built with "
        f"Batch Norm is needed. {hint}."
    )


class _GroupNormAct(GroupNorm):
    """Group Norm with the `drop` and `act` layers of timm's."""

    drop: nn.Module
    act: nn.Module

    @classmethod
    def like(cls, norm: nn.Module) -> _GroupNormAct:
        """With the parameters of `norm`."""
        assert isinstance(norm, nn.GroupNorm)
        made = cls(norm.num_groups, norm.num_channels, norm.eps)
        made.weight, made.bias = norm.weight, norm.bias
        made.drop, made.act = norm.get_submodule("drop"), norm.get_submodule("act")
        return made

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.act(self.drop(super().forward(input, residual)))


def _standardized(conv: nn.Module) -> WSConv2d:
    assert isinstance(conv, nn.Conv2d)
    made = WSConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # torch types it as a tuple of any length
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        conv.bias is not None,
        variant="bit",
        eps=float(conv.eps),  # type: ignore[arg-type]
    )
    made.weight, made.bias = conv.weight, conv.bias
    return made


def _is_timm(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.")
