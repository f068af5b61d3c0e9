"""What reaches each norm of a network: the convolution that feeds it, and the smallest map.

Weight Standardization belongs on convolutions whose output a norm takes and on no others: the official code's users
found networks that get worse with it on the rest (WeightStandardization#3, #4, #6).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchfree.errors import ConversionError

__all__ = ["Dataflow", "dataflow_by_running", "dataflow_by_tracing"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Dataflow:
    """What was seen of a network; modules by their first dotted name."""

    #: Convolutions all of whose outputs are what some Batch Norm takes, untouched.
    normalised_convolutions: frozenset[str]
    #: Spatial elements of the smallest input of each norm that was reached; empty where nothing was run.
    smallest_maps: Mapping[str, int]
    #: Norms that the data flow reached.
    reached: frozenset[str]


def dataflow_by_running(model: nn.Module, example_inputs: Tensor | tuple[object, ...]) -> Dataflow:
    """Runs a copy of `model` once and watches what reaches each norm.

    The copy runs in the model's own mode, so that parts which only training uses are seen; its norms run in evaluation
    mode, since training's batch statistics need more than one value per channel.

    Args:
        example_inputs: the positional arguments of one call; a lone tensor is one argument.
    """
    probe = copy.deepcopy(model)
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    with torch.inference_mode(False):  # an inference tensor has no version counter; a clone does
        arguments = tuple(value.clone() if isinstance(value, Tensor) else value for value in given)
    # Outputs are kept alive, so that no later tensor can have the same id; the version counter tells whether an
    # in-place operator changed one on its way to the norm.
    outputs: dict[int, tuple[str, Tensor, int]] = {}
    calls: Counter[str] = Counter()
    normalised: Counter[str] = Counter()
    smallest: dict[str, int] = {}

    def watch_convolution(name: str, conv: nn.Module) -> None:
        def after(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            calls[name] += 1
            outputs[id(output)] = (name, output, output._version)

        conv.register_forward_hook(after)

    def watch_norm(name: str, norm: nn.Module) -> None:
        def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            smallest[name] = min(smallest.get(name, math.inf), math.prod(x.shape[2:]))  # type: ignore[assignment]
            source, _, version = outputs.pop(id(x), (None, x, None))
            if source is not None and version == x._version:
                normalised[source] += 1

        norm.register_forward_pre_hook(before)

    for name, module in probe.named_modules():
        if isinstance(module, CONVOLUTIONS):
            watch_convolution(name, module)
        elif isinstance(module, _BatchNorm):
            watch_norm(name, module.eval())
    # Dropout must not move the caller's random numbers.
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng():
        probe(*arguments)
    return Dataflow(
        frozenset(name for name, count in normalised.items() if count == calls[name]), smallest, frozenset(smallest)
    )


def dataflow_by_tracing(model: nn.Module) -> Dataflow:
    """Reads the data flow off the symbolic graph, without running anything.

    Raises:
        ConversionError: the model's Python code depends on its data, so that no symbolic graph exists.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # fx raises whatever the model's own code does with a symbolic value
        raise ConversionError(
            f"{type(model).__name__} cannot be traced symbolically ({type(error).__name__}: {error}), so the "
            f"convolutions that a norm follows are not known. Either the trace or one run must show them. "
            f"Pass example_inputs=, a batch that the model accepts."
        ) from error
    modules = dict(model.named_modules())
    # A convolution that is called twice has two nodes: each must go to norms only.
    feeds_norm: dict[str, bool] = {}
    reached = set()
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        module = modules[node.target]
        if isinstance(module, _BatchNorm):
            reached.add(node.target)
        elif isinstance(module, CONVOLUTIONS):
            to_norm = any(
                user.op == "call_module" and isinstance(modules[user.target], _BatchNorm) for user in node.users
            )
            feeds_norm[node.target] = feeds_norm.get(node.target, True) and to_norm
    return Dataflow(frozenset(name for name, feeds in feeds_norm.items() if feeds), {}, frozenset(reached))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Subclasses of torch's own layers (timm's BatchNormAct2d) are seen whole, not traced into.
        return isinstance(m, (*CONVOLUTIONS, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)
