"""What reaches each norm of a network: the convolution that feeds it, its sizes, and the module that calls it.

Weight Standardization belongs on convolutions whose output a norm takes and on no others: the official code's users
found networks that get worse with it on the rest (WeightStandardization#3, #4, #6).
"""

from __future__ import annotations

import copy
import math
import random
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from batchfree.convert._kinds import is_batch_norm
from batchfree.errors import ConversionError

__all__ = [
    "Dataflow",
    "NormReading",
    "copy_of",
    "dataflow_by_running",
    "dataflow_by_tracing",
    "dataflow_of_run",
    "without_traces",
]


@dataclass
class NormReading:
    """What was seen of one norm."""

    #: Shapes of its inputs in the order of the calls; none where nothing was run.
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    calls: int = 0
    #: The convolutions whose outputs it reads, untouched.
    convolutions: set[str] = field(default_factory=set)
    #: The modules in whose forward it was called.
    callers: set[str] = field(default_factory=set)

    @property
    def smallest_map(self) -> tuple[int, ...] | None:
        """Spatial sizes of its smallest input; () for (N, C), `None` where nothing was run."""
        return min((shape[2:] for shape in self.shapes), key=math.prod, default=None)


@dataclass(frozen=True)
class Dataflow:
    """What was seen of a network; modules by their first dotted name."""

    #: Convolutions all of whose outputs are what some Batch Norm takes, untouched.
    normalised_convolutions: frozenset[str]
    #: The norms that were reached.
    norms: Mapping[str, NormReading]
    #: Shapes of each module's first input and output, in the order of the calls; empty where nothing was run.
    inputs: Mapping[str, Sequence[object]] = field(default_factory=dict)
    outputs: Mapping[str, Sequence[object]] = field(default_factory=dict)


def copy_of(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy.

    Raises:
        ConversionError: something in the model cannot be copied.
    """
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a part of the model raises
        raise ConversionError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). The conversion changes a deep "
            f"copy. Convert right after building or loading the model, before a forward has left tensors with a "
            f"gradient on it, and without objects that cannot be copied."
        ) from error


def dataflow_by_running(model: nn.Module, example_inputs: object) -> Dataflow:
    """Runs `model`, a copy that may be changed, once and watches what reaches each norm.

    It runs in the model's own mode, so that parts which only training uses are seen; its norms run in evaluation
    mode, since training's batch statistics need more than one value per channel.

    Args:
        example_inputs: a tuple of the positional arguments of one call; anything else is one argument.

    Raises:
        ConversionError: the model does not run on these inputs.
    """
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    try:
        with torch.inference_mode(False):  # an inference tensor has no version counter; a clone does
            arguments = [value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for value in given]
        return dataflow_of_run(model, lambda: model(*arguments))
    except Exception as error:  # whatever the model's own code raises
        raise ConversionError(
            f"{type(model).__name__} could not be run on the example inputs ({type(error).__name__}: {error}). They "
            f"must be what one call of the model takes: one object, or a tuple of positional arguments. Pass such "
            f"inputs, of the model's device and dtype; a detector in training mode also needs targets, or call "
            f"model.eval() first."
        ) from error


def dataflow_of_run(model: nn.Module, run: Callable[[], object]) -> Dataflow:
    """Watches what reaches each norm of `model`, a copy that may be changed, while `run` runs it once."""
    watch = _Watch()
    for name, module in model.named_modules():
        watch.follow(name, module)
    try:
        with without_traces(model):
            run()
    finally:
        watch.leave()
    return watch.dataflow()


@contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """What runs meanwhile leaves no gradients, and random numbers where they were."""
    with torch.inference_mode(False), torch.no_grad(), _random_numbers_kept(model):
        yield


@contextmanager
def _random_numbers_kept(model: nn.Module) -> Iterator[None]:
    devices = sorted({tensor.get_device() for tensor in model.parameters() if tensor.is_cuda})
    pythons = random.getstate()
    try:
        with torch.random.fork_rng(devices=devices):  # dropout must not move the caller's random numbers
            yield
    finally:
        random.setstate(pythons)


class _Watch:
    """Hooks on every module of a running network, and what they saw."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._stack: list[str] = []
        self._norms: dict[str, NormReading] = {}
        self._inputs: dict[str, list[object]] = defaultdict(list)
        self._outputs: dict[str, list[object]] = defaultdict(list)
        # By id; the weak reference tells a later tensor with the same id apart, and the version counter whether an
        # in-place operator changed the output on its way to the norm.
        self._convolved: dict[int, tuple[str, int, weakref.ref[Tensor], int]] = {}
        self._calls: Counter[str] = Counter()
        self._normalised: dict[str, set[int]] = defaultdict(set)

    def follow(self, name: str, module: nn.Module) -> None:
        if is_batch_norm(module):
            module.eval()

        def before(_module: nn.Module, inputs: tuple[object, ...], named: dict[str, object]) -> None:
            if is_batch_norm(module):
                x = inputs[0] if inputs else next(iter(named.values()), None)
                _need_no_batch(module, x)
                self._read(name, x)
            self._stack.append(name)
            self._inputs[name].append(_shape(inputs[0]) if inputs else None)

        def after(_module: nn.Module, _inputs: object, output: object) -> None:
            self._stack.pop()
            self._outputs[name].append(_shape(output))
            if isinstance(module, _ConvNd) and isinstance(output, Tensor) and not output.is_inference():
                self._convolved[id(output)] = (name, self._calls[name], weakref.ref(output), output._version)
                self._calls[name] += 1

        self._handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]

    def leave(self) -> None:
        """Takes the hooks off again."""
        for handle in self._handles:
            handle.remove()

    def _read(self, name: str, x: object) -> None:
        reading = self._norms.setdefault(name, NormReading())
        reading.calls += 1
        reading.callers.update(self._stack[-1:])
        if not isinstance(x, Tensor):
            return
        reading.shapes.append(tuple(x.shape))
        convolution, call, alive, version = self._convolved.get(id(x), ("", 0, None, 0))
        if alive is not None and alive() is x and version == x._version:
            reading.convolutions.add(convolution)
            self._normalised[convolution].add(call)

    def dataflow(self) -> Dataflow:
        whole = frozenset(name for name, calls in self._normalised.items() if len(calls) == self._calls[name])
        return Dataflow(whole, self._norms, self._inputs, self._outputs)


def _need_no_batch(norm: nn.Module, x: object) -> None:
    """Running statistics for a norm without: it takes the batch's even in evaluation, which one value has not."""
    if isinstance(norm, _BatchNorm) and norm.running_mean is None and isinstance(x, Tensor):
        like = norm.weight if norm.weight is not None else x
        norm.running_mean, norm.running_var = like.new_zeros(norm.num_features), like.new_ones(norm.num_features)


def _shape(value: object) -> object:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None


def dataflow_by_tracing(model: nn.Module) -> Dataflow:
    """Reads the data flow off the symbolic graph of `model`, a copy that may be changed, without running anything.

    Raises:
        ConversionError: the model's Python code depends on its data, so that no symbolic graph exists.
    """
    try:
        with _random_numbers_kept(model):
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
    norms: dict[str, NormReading] = {}
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        module = modules[node.target]
        if is_batch_norm(module):
            _read_node(norms.setdefault(node.target, NormReading()), node, modules)
        elif isinstance(module, _ConvNd):
            to_norm = any(user.op == "call_module" and is_batch_norm(modules[user.target]) for user in node.users)
            feeds_norm[node.target] = feeds_norm.get(node.target, True) and to_norm
    return Dataflow(frozenset(name for name, feeds in feeds_norm.items() if feeds), norms)


def _read_node(reading: NormReading, node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
    reading.calls += 1
    callers = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    reading.callers.add(callers[-2] if len(callers) > 1 else "")
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and source.op == "call_module" and isinstance(modules[str(source.target)], _ConvNd):
        reading.convolutions.add(str(source.target))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Subclasses of torch's own layers (timm's BatchNormAct2d) are seen whole, not traced into.
        return isinstance(m, _ConvNd) or is_batch_norm(m) or super().is_leaf_module(m, module_qualified_name)
