"""Which norms of a network can compute what directly follows them, and why others cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from batchfree.convert._block_fusion import FusedBlock, FusedNorm, fuse_block, joined
from batchfree.convert._dataflow import Dataflow
from batchfree.convert._fused_forward import rewrite_forward

__all__ = ["Fusions", "apply_fusions", "find_fusions"]


@dataclass(frozen=True)
class Fusions:
    """What fuses, by block and by norm, and for the other norms why they do not."""

    blocks: tuple[FusedBlock, ...]
    norms: Mapping[str, FusedNorm]
    reasons: Mapping[str, str]


def find_fusions(model: nn.Module, norms: Iterable[tuple[str, ...]], flow: Dataflow | None) -> Fusions:
    """What each norm can take in.

    Args:
        model: a copy that may be changed: its Python code is run on symbols.
        norms: all dotted names of each norm.
        flow: what was seen of the model; `None` where it could be neither run nor traced.
    """
    reasons: dict[str, str] = {}
    by_owner: dict[str, list[str]] = defaultdict(list)
    for names in norms:
        owner, reason = _owner(model, names, flow)
        if owner is None:
            reasons[names[0]] = reason
        else:
            by_owner[owner].append(names[0][len(owner) + 1 :] if owner else names[0])
    blocks = []
    for owner, local in by_owner.items():
        assert flow is not None
        block, refused = fuse_block(model, owner, local, flow)
        reasons.update({joined(owner, name): reason for name, reason in refused.items()})
        if block is not None:
            blocks.append(block)
    fused = {joined(block.name, name): norm for block in blocks for name, norm in block.norms.items()}
    return Fusions(tuple(blocks), fused, reasons)


def _owner(model: nn.Module, names: tuple[str, ...], flow: Dataflow | None) -> tuple[str | None, str]:
    """The module in whose forward a norm is called, or why that is not one."""
    name = names[0]
    norm = model.get_submodule(name)
    if flow is None:
        return None, "what follows it is not known: the model cannot be traced. Pass example_inputs"
    if len(names) > 1:
        return None, "it is shared by several names"
    if norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks or norm._backward_pre_hooks:
        return None, "it has hooks, which would see another tensor"
    reading = flow.norms.get(name)
    if reading is None:
        return None, "it was not reached"
    owner = next(iter(reading.callers)) if len(reading.callers) == 1 else None
    if owner is None or not name.startswith(f"{owner}." if owner else "") or not name:
        return None, "it is not called by one module that holds it"
    return owner, ""


def apply_fusions(model: nn.Module, fusions: Fusions) -> None:
    """Changes `model`, whose norms are already converted and know their activation."""
    for block in fusions.blocks:
        module = model.get_submodule(block.name)
        for layer in block.idle_layers:
            parent, _, last = layer.rpartition(".")
            replaced = module.get_submodule(layer)
            idle = nn.Identity()
            idle.training = replaced.training
            module.get_submodule(parent)._modules[last] = idle
        if block.graph is not None:
            rewrite_forward(module, block.graph)
