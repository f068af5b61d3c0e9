"""Weight Standardization of the convolutions that a norm reads, and of no others."""

from __future__ import annotations

import math

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from batchfree.convert._dataflow import Dataflow, copy_of, dataflow_by_running, dataflow_by_tracing
from batchfree.convert._replace import replace_everywhere
from batchfree.errors import ConversionError
from batchfree.torch import WSConv1d, WSConv2d, WSConv3d

__all__ = ["fan_in", "read_dataflow", "standardize_weights", "standardized", "why_not_standardized"]

_STANDARDIZED: dict[type[nn.Module], type[WSConv1d | WSConv2d | WSConv3d]] = {
    nn.Conv1d: WSConv1d,
    nn.Conv2d: WSConv2d,
    nn.Conv3d: WSConv3d,
}


def standardize_weights(model: nn.Module, example_inputs: object = None) -> nn.Module:
    """A copy of `model` with Weight Standardization and its Batch Norms as they are (the arm "BN+WS" of BiT, Table 4).

    Args:
        model: any module with Batch Norm.
        example_inputs: as for `convert`.

    Returns:
        A deep copy in which each Conv1d/2d/3d all of whose outputs a Batch Norm takes, and whose fan-in is at least 2,
        is a `WSConv1d/2d/3d`.

    Raises:
        ConversionError: a convolution cannot be standardised, or none feeds a Batch Norm; every reason is listed.
    """
    flow = read_dataflow(copy_of(model), example_inputs)
    copied = copy_of(model)
    replacements: dict[nn.Module, nn.Module] = {}
    reasons: dict[str, str] = {}
    for name, module in copied.named_modules():
        if name in flow.normalised_convolutions and isinstance(module, _ConvNd) and fan_in(module) > 1:
            reason = why_not_standardized(module)
            if reason is None:
                replacements[module] = standardized(module, preserve=False)
            else:
                reasons[name] = reason
    if reasons:
        raise ConversionError(
            f"the filters of {type(model).__name__} cannot be standardised; nothing was changed:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
        )
    if not replacements:
        raise ConversionError(
            f"{type(model).__name__} has no convolution that a Batch Norm follows. One at least is needed, with a "
            f"fan-in of 2 or more. Use the model as it is."
        )
    return replace_everywhere(copied, replacements)


def read_dataflow(model: nn.Module, example_inputs: object) -> Dataflow:
    """The data flow of a copy that may be changed, seen in one run, or on the graph where there are no inputs.

    Raises:
        ConversionError: the run or the trace fails.
    """
    return dataflow_by_tracing(model) if example_inputs is None else dataflow_by_running(model, example_inputs)


def why_not_standardized(conv: nn.Module) -> str | None:
    """Why a convolution with a fan-in of at least 2 cannot have standardised filters; `None` where it can."""
    if parametrize.is_parametrized(conv) or "weight" not in conv._parameters:
        return (
            "its weight is computed from other Parameters (parametrised). A plain Parameter is needed. "
            "Remove the parametrisation first, or convert without ws."
        )
    if type(conv) not in _STANDARDIZED or "forward" in conv.__dict__:
        return (
            f"a norm follows it, and it is a {type(conv).__module__}.{type(conv).__qualname__}, whose own forward "
            f"would be lost. Replace it with a plain convolution first, or convert without ws."
        )
    return None


def standardized(conv: nn.Module, *, preserve: bool) -> WSConv1d | WSConv2d | WSConv3d:
    """The layer for `conv`, which `why_not_standardized` has nothing against."""
    layer: WSConv1d | WSConv2d | WSConv3d = _STANDARDIZED[type(conv)].from_conv(conv, preserve=preserve)  # type: ignore[arg-type]
    return layer


def fan_in(conv: nn.Module) -> int:
    """How many values each filter has; at least 2 where it is computed and not stored."""
    weight = conv._parameters.get("weight")
    return math.prod(weight.shape[1:]) if weight is not None else 2  # a parametrised one: another reason stands
