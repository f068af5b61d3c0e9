"""The norms of one module whose forward shows an activation, or a sum and an activation, right after them.

The module is traced one level deep, its children whole. That graph shows everything which reads a tensor in between.
"""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from batchfree.convert._activations import activation_of_call
from batchfree.convert._dataflow import Dataflow
from batchfree.torch import Activation

__all__ = ["FusedBlock", "FusedNorm", "fuse_block", "joined"]

_ADDITIONS = (operator.add, operator.iadd, torch.add)
#: In the names of attributes that fx puts on what it traces.
_TRACERS_OWN = ("_constant", "_torchbind_obj")
_NO_ACTIVATION = "no ReLU, SiLU or GELU directly follows it"
#: Methods that set parameters and compute nothing.
_SETTERS = ("zero_init_last", "init_weights", "_init_weights", "reset_parameters")


@dataclass(frozen=True)
class FusedNorm:
    """What one norm takes in."""

    activation: Activation
    has_residual: bool
    #: The activation layer's name in the block, where it is one.
    layer: str | None

    def __str__(self) -> str:
        return f"residual + {self.activation}" if self.has_residual else self.activation


@dataclass(frozen=True)
class FusedBlock:
    """One module in whose forward norms take in what follows them; names are relative to it."""

    name: str
    norms: Mapping[str, FusedNorm]
    #: Activation layers that have nothing left to do: each becomes an `nn.Identity`.
    idle_layers: frozenset[str]
    #: The new forward; `None` where idle layers are all there is to change.
    graph: fx.Graph | None


@dataclass(frozen=True)
class _Site:
    """The nodes around one norm."""

    fused: FusedNorm
    norm: fx.Node
    #: What the norm takes in, in order, `nn.Identity` between included; the last is the activation.
    consumed: Sequence[fx.Node]
    total: fx.Node | None = field(default=None)
    other: fx.Node | None = field(default=None)


class _Refused(Exception):  # noqa: N818 (carries a reason, never leaves this module)
    pass


def joined(owner: str, name: str) -> str:
    """A dotted name from that of a module and one relative to it."""
    return f"{owner}.{name}" if owner else name


def fuse_block(
    model: nn.Module, name: str, norms: Collection[str], flow: Dataflow
) -> tuple[FusedBlock | None, dict[str, str]]:
    """What the norms of one module take in, and why others of them nothing.

    Args:
        model: a copy of the network: the module's Python code is run on symbols.
        name: dotted name of the module.
        norms: names relative to it.
        flow: what was seen of the model.
    """
    module = model.get_submodule(name)
    try:
        graphs = _traced(module)
    except _Refused as reason:
        return None, dict.fromkeys(norms, str(reason))
    reasons: dict[str, str] = {}
    sites = _sites(module, name, graphs[0], norms, flow, reasons)
    evaluation = _sites(module, name, graphs[1], norms, flow, {})
    for norm in [norm for norm in sites if norm not in evaluation or sites[norm].fused != evaluation[norm].fused]:
        reasons[norm] = "what follows it depends on the training flag"
        del sites[norm]
    idle, apart = _idle_layers(module, graphs, sites)
    refusal = _why_not_rewrite(module, graphs) if apart else None
    while apart and refusal is not None:  # without those, fewer layers are idle
        reasons.update(dict.fromkeys(apart, refusal))
        sites = {norm: site for norm, site in sites.items() if norm not in apart}
        idle, apart = _idle_layers(module, graphs, sites)
    if not sites:
        return None, reasons
    graph = _rewritten(graphs[0], sites) if apart else None
    return FusedBlock(name, {norm: site.fused for norm, site in sites.items()}, frozenset(idle), graph), reasons


def _traced(module: nn.Module) -> tuple[fx.Graph, fx.Graph]:
    """The graph in training and in evaluation."""
    shown = f"{type(module).__name__}.forward"
    if "forward" in module.__dict__:
        raise _Refused(f"{shown} was replaced on this one object")
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.default is not p.empty or p.kind not in plain for p in parameters):
        raise _Refused(f"{shown} has optional arguments, on which it may depend")
    asked: list[bool] = []

    class Asking(type(module)):  # type: ignore[misc]
        """Tells whether the forward looks at the training flag: a second trace takes milliseconds per module."""

        @property
        def training(self) -> bool:
            asked.append(True)
            return len(graphs) == 0

        def __setattr__(self, name: str, value: Any) -> None:
            if not any(part in name for part in _TRACERS_OWN):
                raise _Refused(f"{shown} sets self.{name}, which no graph shows")
            super().__setattr__(name, value)

    graphs: list[fx.Graph] = []
    try:
        while len(graphs) < 2:
            graphs.append(_OneLevel().trace(_as(Asking, module)) if asked or not graphs else graphs[0])
    except _Refused:
        raise
    except Exception as error:  # fx raises whatever the module's own code does with a symbolic value
        raise _Refused(f"{shown} cannot be traced ({type(error).__name__})") from error
    return graphs[0], graphs[1]


def _as(asking: type[nn.Module], module: nn.Module) -> nn.Module:
    """A shallow copy of another class: what fx sets, it sets on this one."""
    probe = asking.__new__(asking)
    object.__setattr__(probe, "__dict__", dict(module.__dict__))
    return probe


class _OneLevel(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _sites(
    module: nn.Module, name: str, graph: fx.Graph, norms: Collection[str], flow: Dataflow, reasons: dict[str, str]
) -> dict[str, _Site]:
    """Where norms can take in what follows; for the others a reason is written into `reasons`."""
    found: dict[str, _Site] = {}
    sums: set[fx.Node | None] = set()
    for norm in norms:
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target == norm]
        try:
            if len(calls) != 1:
                raise _Refused(f"{type(module).__name__}.forward calls it {len(calls)} times")
            site = _site(module, name, calls[0], flow)
            if site.total is not None and site.total in sums:
                raise _Refused("the sum after it is computed by another norm")
        except _Refused as reason:
            reasons[norm] = str(reason)
        else:
            sums.add(site.total)
            found[norm] = site
    return found


def _site(module: nn.Module, name: str, norm: fx.Node, flow: Dataflow) -> _Site:
    consumed = _following(norm, module)
    after = consumed[-1]
    activation = activation_of_call(after, module)
    if activation is not None and list(after.all_input_nodes) == list(after.args[:1]):
        return _Site(FusedNorm(activation, False, _layer(after)), norm, consumed)
    if not _is_sum(after):
        raise _Refused(_NO_ACTIVATION)
    rest = _following(after, module)
    activation = activation_of_call(rest[-1], module)
    if activation is None:
        raise _Refused("no ReLU, SiLU or GELU directly follows the sum after it")
    summand = consumed[-2] if len(consumed) > 1 else norm
    other = _other_summand(after, summand)
    _check_residual(name, norm, other, flow)
    return _Site(FusedNorm(activation, True, _layer(rest[-1])), norm, [*consumed, *rest], after, other)


def _following(node: fx.Node, owner: nn.Module) -> list[fx.Node]:
    """The one node that reads a tensor, after the `nn.Identity` layers on the way to it."""
    path: list[fx.Node] = []
    while True:
        users = list(node.users)
        if len(users) > 1:
            raise _Refused("something else reads its output too")
        if not users or users[0].op == "output":
            raise _Refused(f"its output leaves {type(owner).__name__}.forward before an activation")
        path.append(users[0])
        if not _is_identity(users[0], owner):
            return path
        node = users[0]


def _is_identity(node: fx.Node, owner: nn.Module) -> bool:
    if node.op != "call_module":
        return False
    layer = owner.get_submodule(str(node.target))
    return type(layer) is nn.Identity and not (layer._forward_hooks or layer._forward_pre_hooks)


def _is_sum(node: fx.Node) -> bool:
    function = node.op == "call_function" and node.target in _ADDITIONS
    method = node.op == "call_method" and node.target in ("add", "add_")
    return (function or method) and len(node.args) == 2 and not node.kwargs


def _other_summand(total: fx.Node, summand: fx.Node) -> fx.Node:
    first, second = total.args
    other = second if first is summand else first
    if not isinstance(other, fx.Node) or other is summand:
        raise _Refused("what is added to it is not one other tensor")
    return other


def _layer(node: fx.Node) -> str | None:
    return str(node.target) if node.op == "call_module" else None


def _check_residual(name: str, norm: fx.Node, other: fx.Node, flow: Dataflow) -> None:
    """The norm moves to where the sum was, and its kernel adds tensors of one shape."""
    source = norm.args[0] if norm.args else None
    if len(norm.args) != 1 or norm.kwargs or not isinstance(source, fx.Node):
        raise _Refused("it is called with more than one argument")
    reading = flow.norms[joined(name, str(norm.target))]
    # A convolution's output is a tensor of its own: what nothing else reads, nothing changes before the sum.
    if joined(name, str(source.target)) not in reading.convolutions or len(source.users) > 1:
        raise _Refused("its input is not the output of a convolution that nothing else reads")
    mine, theirs = _shapes(name, source, flow), _shapes(name, other, flow)
    if not flow.outputs:
        raise _Refused("whether the summands have one shape is not known. Pass example_inputs")
    if not mine or not theirs:
        raise _Refused("the shape of what is added to it was not seen")
    if mine != theirs:
        raise _Refused("what is added to it has another shape")


def _shapes(owner: str, node: fx.Node, flow: Dataflow) -> list[object]:
    """Shapes and dtypes of what a node gave, call by call; empty where they were not seen."""
    seen: Sequence[object] = ()
    if node.op == "call_module":
        seen = flow.outputs.get(joined(owner, str(node.target)), ())
    elif node is next(iter(node.graph.nodes)):  # the first argument of the forward
        seen = flow.inputs.get(owner, ())
    return [] if None in seen else list(seen)


def _idle_layers(
    module: nn.Module, graphs: Sequence[fx.Graph], sites: Mapping[str, _Site]
) -> tuple[set[str], list[str]]:
    """Activation layers all of whose calls are taken in, and the norms for which that is not enough."""
    taken = Counter(site.fused.layer for site in sites.values())
    objects = Counter(id(child) for _, child in module.named_modules(remove_duplicate=False))
    idle = {
        layer
        for layer, count in taken.items()
        if layer is not None
        and objects[id(module.get_submodule(layer))] == 1  # not under a second name here
        and all(sum(n.op == "call_module" and n.target == layer for n in graph.nodes) == count for graph in graphs)
    }
    apart = [norm for norm, site in sites.items() if site.fused.has_residual or site.fused.layer not in idle]
    return idle, apart


def _why_not_rewrite(module: nn.Module, graphs: tuple[fx.Graph, fx.Graph]) -> str | None:
    """Why the forward of this module must stay as it is written."""
    shown = f"{type(module).__name__}.forward would have to be rewritten, and"
    if str(graphs[0]) != str(graphs[1]):
        return f"{shown} it depends on the training flag"
    if any(node.op == "get_attr" and "_constant" in str(node.target) for node in graphs[0].nodes):
        return f"{shown} it makes tensors of its own"
    children = set(module._modules)
    for base in type(module).__mro__:
        if base in (nn.Module, nn.Sequential):
            break
        for name, function in vars(base).items():
            code = getattr(function, "__code__", None)
            if code is None or name in ("forward", *_SETTERS) or name.startswith("__"):
                continue
            if children & set(code.co_names):
                return f"{shown} its method {name} uses the same layers"
    return None


def _rewritten(graph: fx.Graph, sites: Mapping[str, _Site]) -> fx.Graph:
    """The graph in which the norms do what came after them."""
    for site in sites.values():
        merged = site.norm
        if site.total is not None:
            with graph.inserting_before(site.total):
                merged = graph.call_module(str(site.norm.target), site.norm.args, {"residual": site.other})
        site.consumed[-1].replace_all_uses_with(merged)
        for node in reversed(site.consumed):
            graph.erase_node(node)
        if site.total is not None:
            graph.erase_node(site.norm)
    graph.lint()
    return graph
