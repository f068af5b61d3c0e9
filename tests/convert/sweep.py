"""What conversion must do to any network."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from batchfree.convert import convert, plan_conversion
from tests.convert.networks import pixels

Inputs = tuple[Any, ...]


def check_conversion(model: nn.Module, inputs: Inputs) -> None:
    """Plans and converts `model`, plainly and with everything; both train at batch 1 and give the same.

    Args:
        model: in the mode that `inputs` are for.
        inputs: positional arguments of one call.
    """
    plan = plan_conversion(model, inputs)
    assert plan.reasons == ()
    assert len(plan.rows) == len(_batch_norms(model)) > 0
    plain = convert(model, example_inputs=inputs)
    assert _batch_norms(plain) == []
    whole = convert(model, example_inputs=inputs, fuse=True, ws=any(row.convolutions for row in plan.rows))
    assert plain.state_dict().keys() <= whole.state_dict().keys()
    expected = _train(plain, inputs)
    for output, wanted in zip(_train(whole, inputs), expected, strict=True):
        # What a wrong fusion changes is as large as the output itself; rounding in a random network is far below this.
        assert (output - wanted).abs().max() < 1e-2 * (wanted.abs().max() + 1e-6)


def _batch_norms(model: nn.Module) -> list[str]:
    """By their traces, not by the library's own rule: running statistics, or the name of the class."""
    return [
        name
        for name, module in model.named_modules()
        if module._buffers.get("running_mean") is not None or "BatchNorm" in type(module).__name__
    ]


def _train(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Outputs, after a backward pass has given finite gradients."""
    torch.manual_seed(0)
    random.seed(0)
    outputs = [tensor for tensor in _tensors(model(*inputs)) if tensor.is_floating_point()]
    # Weighted at random: the sum of what a norm gives has no gradient.
    sum((output * pixels(*output.shape)).sum() for output in outputs if output.requires_grad).backward()  # type: ignore[union-attr]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    return [output.detach() for output in outputs]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in _tensors(item)]
