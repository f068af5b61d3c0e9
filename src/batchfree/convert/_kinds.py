"""What counts as Batch Norm, and what of each kind a Group Norm can take over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

__all__ = ["BatchNormFacts", "is_batch_norm", "is_uninitialized", "read_batch_norm"]

_TORCH_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
#: timm's norms that end in their own `drop` and `act` layers, by the name of the forward: timm itself is not imported.
_TIMM_FORWARDS = ("BatchNormAct2d.forward", "SyncBatchNormAct.forward", "FrozenBatchNormAct2d.forward")
_STATISTICS = ("running_mean", "running_var")
_FROZEN = ("weight", "bias", *_STATISTICS)
#: Epsilon of frozen norms that write it into their forward, as Hugging Face's do.
_USUAL_EPS = 1e-5


@dataclass(frozen=True)
class BatchNormFacts:
    """What a Group Norm in the place of one Batch Norm needs to know of it."""

    kind: str
    channels: int | None
    eps: float
    #: Parameters; of a frozen norm they are buffers, and `is_frozen` says so.
    weight: Tensor | None
    bias: Tensor | None
    is_frozen: bool
    #: What it applies to its own output, by name and in order: timm's `drop` and `act`.
    layers: Mapping[str, nn.Module]
    #: Why it cannot be converted, each with what to do.
    reasons: tuple[str, ...] = field(default=())


def is_batch_norm(module: nn.Module) -> bool:
    """Whether `module` normalises with statistics of a batch, past or present, whatever its class."""
    return isinstance(module, _BatchNorm) or _has_running_statistics(module)


def is_uninitialized(module: nn.Module) -> bool:
    """Whether `module` is a lazy layer that does not know its sizes yet."""
    return isinstance(module, LazyModuleMixin) and bool(module.has_uninitialized_params())  # type: ignore[misc]


def read_batch_norm(module: nn.Module) -> BatchNormFacts | None:
    """What there is to know of a Batch Norm; `None` where `module` is none."""
    if not is_batch_norm(module):
        return None
    if is_uninitialized(module):
        reason = "it is lazy and does not know its channels yet. A materialised norm is needed. Run the model once on "
        return _refused(module, None, (f"{reason}a batch before converting it.",))
    is_frozen = _is_frozen(module)
    if not isinstance(module, _BatchNorm) and not is_frozen:
        return _refused(module, _channels(module), (_own_forward(module),))
    eps = float(getattr(module, "eps", _USUAL_EPS))
    layers = {name: module._modules[name] for name in ("drop", "act") if module._modules.get(name) is not None}
    return BatchNormFacts(
        type(module).__name__,
        _channels(module),
        eps,
        getattr(module, "weight", None),
        getattr(module, "bias", None),
        is_frozen,
        {name: layer for name, layer in layers.items() if layer is not None} if _is_timms(module) else {},
        tuple(_reasons(module, is_frozen, eps)),
    )


def _reasons(module: nn.Module, is_frozen: bool, eps: float) -> list[str]:
    reasons = []
    if "forward" in module.__dict__:
        reasons.append(
            "its forward was replaced on this one object. Only the forward of its class is known. "
            "Undo that first (accelerate: remove_hook_from_module)."
        )
    known = type(module).forward in _TORCH_FORWARDS or _is_timms(module) or (is_frozen and _is_plainly_frozen(module))
    if not known:
        reasons.append(_own_forward(module))
    if parametrize.is_parametrized(module):
        reasons.append(
            "its weight or bias is parametrised. Plain Parameters are needed. "
            "Call torch.nn.utils.parametrize.remove_parametrizations on it first."
        )
    elif extra := sorted(module._parameters.keys() - {"weight", "bias"}):
        reasons.append(
            f"its Parameters {', '.join(extra)} would be lost. A Group Norm has weight and bias only. "
            f"Replace it with a plain BatchNorm first."
        )
    if not eps > 0:
        reasons.append(
            f"its eps is {eps}. It must be positive: a constant group would be divided by zero. "
            f"Set its eps to 1e-5 first."
        )
    return reasons


def _own_forward(module: nn.Module) -> str:
    return (
        f"it is a {type(module).__module__}.{type(module).__qualname__}, whose own forward would be lost. Known are "
        f"those of torch, of timm's norms with activation and of frozen Batch Norms. "
        f"Replace it with a plain BatchNorm first."
    )


def _is_timms(module: nn.Module) -> bool:
    forward = type(module).forward
    return forward.__module__.startswith("timm.") and forward.__qualname__ in _TIMM_FORWARDS


def _is_frozen(module: nn.Module) -> bool:
    """torchvision's, detectron2's, timm's and Hugging Face's: four buffers of one shape and no Parameter."""
    if isinstance(module, _BatchNorm) or module._parameters:
        return False
    shapes = {tuple(buffer.shape) for name in _FROZEN if (buffer := module._buffers.get(name)) is not None}
    return all(module._buffers.get(name) is not None for name in _FROZEN) and len(shapes) == 1


def _is_plainly_frozen(module: nn.Module) -> bool:
    """A class that says it is a frozen Batch Norm; every published one has the same forward, written out."""
    name = type(module).__name__.lower()
    return "batchnorm" in name or "frozenbn" in name


def _has_running_statistics(module: nn.Module) -> bool:
    if isinstance(module, _InstanceNorm):  # it may track statistics, and does not normalise over the batch
        return False
    found = [module._buffers.get(name) for name in _STATISTICS]
    return all(buffer is not None and buffer.dim() == 1 for buffer in found)


def _channels(module: nn.Module) -> int:
    if isinstance(module, _BatchNorm):
        return module.num_features
    statistics = module._buffers["running_mean"]
    assert statistics is not None
    return len(statistics)


def _refused(module: nn.Module, channels: int | None, reasons: tuple[str, ...]) -> BatchNormFacts:
    return BatchNormFacts(type(module).__name__, channels, _USUAL_EPS, None, None, False, {}, reasons)
