"""Batch Norm out, Group Norm in: a plan carried out on a copy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from batchfree.convert._dataflow import copy_of
from batchfree.convert._fusion import apply_fusions
from batchfree.convert._groups import Groups, GroupsRequest, Norm
from batchfree.convert._kinds import read_batch_norm
from batchfree.convert._layers import Affine, group_norm_for, own_activation
from batchfree.convert._optimizer import check_optimizer, move_optimizer
from batchfree.convert._plan import ConversionPlan, Ws, make_plan
from batchfree.convert._replace import replace_everywhere
from batchfree.convert._standardize import standardized
from batchfree.errors import ArgumentError, ConversionError, unknown_name
from batchfree.torch import WSConv1d, WSConv2d, WSConv3d

__all__ = ["Eps", "convert"]

#: "keep": of the old norms; or by their dotted names.
Eps: TypeAlias = "Literal['keep'] | Mapping[str, float]"


def convert(
    model: nn.Module,
    norm: Norm = "gn",
    *,
    groups: Groups = "auto",
    num_groups: int | None = None,
    channels_per_group: int | None = None,
    ws: Ws = False,
    affine: Affine = "keep",
    eps: Eps = "keep",
    example_inputs: object = None,
    optimizer: torch.optim.Optimizer | None = None,
    fuse: bool = False,
) -> nn.Module:
    """A copy of `model` in which Group Norm stands for every Batch Norm; `model` itself is left as it is.

    BatchNorm1d/2d/3d, SyncBatchNorm, lazy ones that know their sizes, frozen ones (torchvision's, detectron2's, Hugging
    Face's) and timm's `BatchNormAct2d` family are replaced at every name of a shared one. The new layers keep dtype,
    device, eps, `requires_grad`, training flag and hooks, and the `state_dict` keys of weights and biases stay. What a
    frozen norm held as buffers becomes Parameters without gradient.

    Args:
        model: any module; `plan_conversion` shows what will be done to it.
        norm: "gn"; "ln": one group; "in": a group per channel.
        groups: "auto": see `batchfree.groups.resolve_num_groups`; a mapping from dotted names of norms to their groups,
            "auto" for the others; or a function from the number of channels. Only for "gn".
        num_groups, channels_per_group: the same for every norm, instead of `groups`. Only for "gn".
        ws: standardise the filters of each Conv1d/2d/3d with a fan-in of at least 2 all of whose outputs a converted
            norm reads ("bit" form). `True` keeps what each filter does, with a gain and an offset per filter;
            "strict" has neither and is for training from scratch.
        affine: "keep": weight and bias of the old norm, so that a zero-initialised last gamma stays zero; "fresh":
            ones and zeros.
        eps: "keep": each old norm's own; or a mapping from dotted names of norms to values, as `calibrate` reports
            them, "keep" for the others.
        example_inputs: what one call takes: one object, or the tuple of positional arguments. With them a copy is run
            once, which gives "auto" the size of each map, `ws` the data flow, and `fuse` the shapes. Without them `ws`
            needs a model that `torch.fx` can trace.
        optimizer: one that was built on `model`: it is changed to train the result, each Parameter in the group where
            it was, with its state; gains and offsets join the group of their convolution's weight.
        fuse: let norms compute the ReLU, SiLU or GELU that directly follows them, and the sum before that, where
            nothing else reads the tensors between. Numbers change by rounding only.

    Returns:
        A deep copy with the same names of modules.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
        ConversionError: something cannot be converted; every reason is listed, by dotted name.

    A network that was *trained* with Batch Norm loses most of its accuracy here, since each group's statistics take
    the place of the running ones, until `calibrate` fits its norms.

    >>> network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
    >>> [type(layer).__name__ for layer in convert(network, "gn", ws=True).children()]
    ['WSConv2d', 'GroupNorm', 'ReLU']
    """
    request = GroupsRequest(norm, groups, num_groups, channels_per_group)
    if affine not in get_args(Affine):
        raise ArgumentError(unknown_name("affine", str(affine), get_args(Affine)))
    if not isinstance(fuse, bool):
        raise ArgumentError(f"fuse={fuse!r} was given. It must be True or False. Pass one of these.")
    plan = make_plan(model, example_inputs, request, ws, fuse=fuse)
    if plan.reasons:
        raise ConversionError(
            f"{plan.model} cannot be converted to {norm}{'+ws' if ws else ''}; nothing was changed:\n"
            + "\n".join(f"  {reason}" for reason in plan.reasons)
        )
    values = _eps_by_norm(eps, plan)
    if optimizer is not None:
        check_optimizer(optimizer, model)
    memo: dict[int, Any] = {}
    copied = copy_of(model, memo)
    replacements, fresh = _new_layers(copied, plan, affine, fuse)
    for name, value in values.items():
        replacements[copied.get_submodule(name)].eps = value  # type: ignore[assignment]
    converted = replace_everywhere(copied, replacements)
    apply_fusions(converted, plan.fusions)
    if optimizer is not None:
        _move(optimizer, model, memo, replacements, fresh)
    return converted


def _eps_by_norm(eps: Eps, plan: ConversionPlan) -> Mapping[str, float]:
    """Epsilons by dotted names of norms, checked."""
    if isinstance(eps, str) and eps == "keep":
        return {}
    if not isinstance(eps, Mapping):
        raise ArgumentError(
            f"eps={eps!r} was given. It must be 'keep' or a mapping from dotted names of norms to positive numbers. "
            f"Pass for instance the eps of calibrate's report."
        )
    known = {name for row in plan.rows for name in row.names}
    for name, value in eps.items():
        if name not in known:
            raise ArgumentError(unknown_name("norm in eps", str(name), sorted(known)))
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ArgumentError(
                f"eps={value!r} was given for the norm {name!r}. It must be positive and finite: it keeps a constant "
                f"group finite. Pass 1e-5, or leave the norm out."
            )
    return {name: float(value) for name, value in eps.items()}


def _new_layers(
    model: nn.Module, plan: ConversionPlan, affine: Affine, fuse: bool
) -> tuple[dict[nn.Module, nn.Module], dict[torch.Tensor, nn.Parameter]]:
    """What takes the place of each module of the copy, and of each Parameter that is not kept."""
    replacements: dict[nn.Module, nn.Module] = {}
    fresh: dict[torch.Tensor, nn.Parameter] = {}
    for row in plan.rows:
        norm = model.get_submodule(row.names[0])
        facts = read_batch_norm(norm)
        assert facts is not None
        assert row.num_groups is not None
        activation = own_activation(facts)[0] if fuse else None
        has_residual = False
        if (fused := plan.fusions.norms.get(row.names[0])) is not None:
            activation, has_residual = fused.activation, fused.has_residual
        replacements[norm] = group_norm_for(norm, facts, row.num_groups, affine, activation, has_residual, fresh)
        for name in row.standardizes:
            conv = model.get_submodule(name)
            if conv not in replacements:
                replacements[conv] = standardized(conv, preserve=plan.ws is True)
    return replacements, fresh


def _move(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    memo: dict[int, Any],
    replacements: dict[nn.Module, nn.Module],
    fresh: dict[torch.Tensor, nn.Parameter],
) -> None:
    copies = {id(parameter): memo[id(parameter)] for parameter in model.parameters()}
    originals = {id(copied): original for original, copied in copies.items()}
    additions: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for layer in replacements.values():
        if isinstance(layer, (WSConv1d, WSConv2d, WSConv3d)):
            new = [(name, getattr(layer, name)) for name in ("gain", "offset")]
            joining = additions.setdefault(originals[id(layer.weight)], [])
            joining += [(name, parameter) for name, parameter in new if parameter is not None]
    successors = {original: fresh.get(copied, copied) for original, copied in copies.items()}
    kept = {original for original, copied in copies.items() if copied not in fresh}
    move_optimizer(optimizer, successors, kept, additions)
