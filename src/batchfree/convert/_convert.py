"""Batch Norm out, Group Norm in: the first form, for networks that are trained afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from batchfree.convert._dataflow import CONVOLUTIONS, Dataflow, dataflow_by_running, dataflow_by_tracing
from batchfree.errors import ArgumentError, BatchfreeError, ConversionError, unknown_name
from batchfree.groups import check_values_per_group, resolve_num_groups
from batchfree.torch import GroupNorm, WSConv1d, WSConv2d, WSConv3d

__all__ = ["Affine", "Groups", "Norm", "convert", "standardize_weights"]

Norm: TypeAlias = Literal["gn", "ln", "in"]
Affine: TypeAlias = Literal["keep", "fresh"]
#: How many groups: the same for every norm, "auto", or from each norm's number of channels.
Groups: TypeAlias = "int | Literal['auto'] | Callable[[int], int]"

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
STANDARDIZED: dict[type[nn.Module], type[WSConv1d | WSConv2d | WSConv3d]] = {
    nn.Conv1d: WSConv1d,
    nn.Conv2d: WSConv2d,
    nn.Conv3d: WSConv3d,
}


def convert(
    model: nn.Module,
    norm: Norm = "gn",
    *,
    groups: Groups = "auto",
    channels_per_group: int | None = None,
    ws: bool = False,
    affine: Affine = "keep",
    example_inputs: Tensor | tuple[object, ...] | None = None,
) -> nn.Module:
    """A copy of `model` in which Group Norm stands for every Batch Norm; `model` itself is left as it is.

    BatchNorm1d/2d/3d, SyncBatchNorm and timm's `BatchNormAct2d` are replaced, wherever a shared one is used; with `ws`
    also each convolution whose output goes straight to one of them. The new layers keep dtype, device, eps,
    `requires_grad`, training flag and hooks, and the `state_dict` keys of weights and biases stay.

    Args:
        model: any module; frozen variants without batch statistics (`FrozenBatchNorm2d`) are left alone.
        norm: "gn"; "ln": one group; "in": a group per channel.
        groups: of every norm; "auto": see `batchfree.groups.resolve_num_groups`; or a function from the number of
            channels of a norm to its groups. Only for "gn".
        channels_per_group: instead of `groups`. Only for "gn".
        ws: standardise the filters of each Conv1d/2d/3d all of whose outputs a Batch Norm takes ("bit" form).
        affine: "keep": weight and bias of the old norm, so that a zero-initialised last gamma stays zero; "fresh":
            ones and zeros.
        example_inputs: one tensor, or the tuple of positional arguments of one call. With them the model is run once,
            which gives "auto" the size of each map and `ws` the data flow. Without them `ws` needs a model that
            `torch.fx` can trace.

    Returns:
        A deep copy with the same names of modules.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
        ConversionError: something cannot be converted; every reason is listed, by dotted name.

    A network that was *trained* with Batch Norm loses most of its accuracy here, since each group's statistics take
    the place of the running ones; train it, or build it untrained.

    >>> network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
    >>> [type(layer).__name__ for layer in convert(network, "gn", ws=True).children()]
    ['WSConv2d', 'GroupNorm', 'ReLU']
    """
    _check_arguments(model, norm, groups, channels_per_group, ws, affine)
    _check_initialized(model)
    request = _Request(norm, groups, channels_per_group, affine, ws)
    flow = _dataflow(model, ws, example_inputs)
    converted = copy.deepcopy(model)
    replacements, reasons = _plan(converted, request, flow)
    if reasons:
        raise ConversionError(
            f"{type(model).__name__} cannot be converted to {norm}{'+ws' if ws else ''}; nothing was changed:\n"
            + "\n".join(f"  {name or '(the model itself)'}: {reason}" for name, reason in reasons.items())
        )
    if not replacements:
        raise ConversionError(
            f"{type(model).__name__} has no Batch Norm. A model with at least one BatchNorm1d/2d/3d or "
            f"SyncBatchNorm is needed. Convert a scripted model before scripting it; build a detection backbone with "
            f"norm_layer=torch.nn.BatchNorm2d instead of FrozenBatchNorm2d; else use this model as it is."
        )
    return _replace_everywhere(converted, replacements)


def standardize_weights(model: nn.Module, example_inputs: Tensor | tuple[object, ...] | None = None) -> nn.Module:
    """A copy of `model` with Weight Standardization and its Batch Norms as they are (the arm "BN+WS" of BiT, Table 4).

    Args:
        model: any module with Batch Norm.
        example_inputs: as for `convert`.

    Returns:
        A deep copy in which each Conv1d/2d/3d all of whose outputs a Batch Norm takes is a `WSConv1d/2d/3d`.

    Raises:
        ConversionError: a convolution cannot be standardised, or none feeds a Batch Norm; every reason is listed.
    """
    flow = _dataflow(model, True, example_inputs)
    standardized = copy.deepcopy(model)
    replacements: dict[nn.Module, nn.Module] = {}
    reasons: dict[str, str] = {}
    for name, module in standardized.named_modules():
        if isinstance(module, CONVOLUTIONS) and name in flow.normalised_convolutions:
            try:
                replacements[module] = _standardized(module)
            except BatchfreeError as reason:
                reasons[name] = str(reason)
    if reasons:
        raise ConversionError(
            f"the filters of {type(model).__name__} cannot be standardised; nothing was changed:\n"
            + "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
        )
    if not replacements:
        raise ConversionError(
            f"{type(model).__name__} has no convolution that a Batch Norm follows. One at least is needed. "
            f"Use the model as it is."
        )
    return _replace_everywhere(standardized, replacements)


@dataclass(frozen=True)
class _Request:
    norm: Norm
    groups: Groups
    channels_per_group: int | None
    affine: Affine
    ws: bool

    def num_groups(self, channels: int, smallest_map: int | None) -> int:
        if self.norm == "ln":
            return 1
        if self.norm == "in":
            return channels
        if self.channels_per_group is not None:
            return resolve_num_groups(channels, channels_per_group=self.channels_per_group)
        groups = self.groups(channels) if callable(self.groups) else self.groups
        return resolve_num_groups(channels, groups, smallest_map=smallest_map)


def _plan(model: nn.Module, request: _Request, flow: Dataflow) -> tuple[dict[nn.Module, nn.Module], dict[str, str]]:
    """What takes the place of each module, and why some cannot be replaced, by dotted name."""
    replacements: dict[nn.Module, nn.Module] = {}
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():  # a shared module comes once, under its first name
        try:
            if isinstance(module, _BatchNorm):
                if request.ws and name not in flow.reached:
                    raise ConversionError(
                        "the data flow did not reach it, so what feeds it is not known. If only training uses it, "
                        "call model.train() first; else convert without ws."
                    )
                replacements[module] = _group_norm_for(module, request, flow.smallest_maps.get(name))
            elif isinstance(module, CONVOLUTIONS) and request.ws and name in flow.normalised_convolutions:
                replacements[module] = _standardized(module)
        except BatchfreeError as reason:
            reasons[name] = str(reason).replace("num_groups=", "groups=")  # as the argument is called here
    return replacements, reasons


def _dataflow(model: nn.Module, ws: bool, example_inputs: Tensor | tuple[object, ...] | None) -> Dataflow:
    if example_inputs is not None:
        return dataflow_by_running(model, example_inputs)
    if ws:
        return dataflow_by_tracing(model)
    return Dataflow(frozenset(), {}, frozenset())


def _group_norm_for(norm: _BatchNorm, request: _Request, smallest_map: int | None) -> GroupNorm:
    channels = norm.num_features
    num_groups = request.num_groups(channels, smallest_map)
    if smallest_map is not None:
        check_values_per_group(channels, num_groups, (smallest_map,))
    device, dtype = (None, None) if norm.weight is None else (norm.weight.device, norm.weight.dtype)
    group_norm_class, children = _class_for(norm)
    converted = group_norm_class(num_groups, channels, norm.eps, norm.affine, device, dtype)
    if norm.affine:
        _take_over_affine(converted, norm, request.affine)
    for name, child in children.items():
        setattr(converted, name, child)
    _carry_hooks(norm, converted)
    converted.training = norm.training
    return converted


class _GroupNormAct(GroupNorm):
    """Group Norm with the `drop` and `act` layers of a timm `BatchNormAct2d`, under the same names."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.act(self.drop(super().forward(input, residual)))


def _class_for(norm: _BatchNorm) -> tuple[type[GroupNorm], dict[str, nn.Module]]:
    """The layer that takes the place of `norm`, and the children it takes over."""
    children = dict(norm.named_children())
    if type(norm) in BATCH_NORMS:
        return GroupNorm, {}
    if type(norm).__module__.startswith("timm.") and set(children) == {"drop", "act"}:
        return _GroupNormAct, children
    raise ConversionError(
        f"it is a {type(norm).__module__}.{type(norm).__qualname__}, whose own forward would be lost. "
        f"Replace it with a plain BatchNorm first."
    )


def _take_over_affine(converted: GroupNorm, norm: _BatchNorm, affine: Affine) -> None:
    if affine == "keep":  # the Parameter itself: tied ones stay tied
        converted.weight, converted.bias = norm.weight, norm.bias
    else:
        converted.weight.requires_grad_(norm.weight.requires_grad)
        converted.bias.requires_grad_(norm.bias.requires_grad)


def _carry_hooks(old: nn.Module, new: nn.Module) -> None:
    for name, value in old.__dict__.items():
        if "_hook" in name and "state_dict" not in name:  # which kind the backward ones are included
            new.__dict__[name] = value


def _standardized(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> nn.Module:
    standardized_class = STANDARDIZED.get(type(conv))
    if standardized_class is None:
        raise ConversionError(
            f"a norm follows it, and it is a {type(conv).__module__}.{type(conv).__qualname__}, whose own forward "
            f"would be lost. Replace it with a plain convolution first, or convert without ws."
        )
    return standardized_class.from_conv(conv)


def _replace_everywhere(root: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    """Puts each new module at every name of the old one; `root` itself may be one."""
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips a second name of the same module
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(root, root)


def _check_initialized(model: nn.Module) -> None:
    lazy = [
        name
        for name, module in model.named_modules()
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()  # type: ignore[misc]
    ]
    if lazy:
        raise ConversionError(
            f"{', '.join(lazy)}: these lazy layers do not know their sizes yet. A model with initialised parameters is "
            f"needed. Run it once on a batch before converting it."
        )


def _check_arguments(
    model: nn.Module, norm: str, groups: Groups | str, channels_per_group: int | None, ws: bool, affine: str
) -> None:
    if not isinstance(ws, bool):
        raise ArgumentError(f"ws={ws!r} was given. It must be True or False. Pass one of these.")
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"a {type(model).__name__} was given as the model. It must be a torch.nn.Module. Pass one.")
    if norm not in get_args(Norm):
        raise ArgumentError(unknown_name("norm", str(norm), get_args(Norm)))
    if affine not in get_args(Affine):
        raise ArgumentError(unknown_name("affine", str(affine), get_args(Affine)))
    if norm != "gn" and (groups != "auto" or channels_per_group is not None):
        raise ArgumentError(
            f"groups={groups!r}, channels_per_group={channels_per_group!r} were given with norm={norm!r}, which fixes "
            f"its groups. They are for 'gn'. Leave them out, or pass norm='gn'."
        )
    if groups != "auto" and channels_per_group is not None:
        raise ArgumentError(
            f"both groups={groups!r} and channels_per_group={channels_per_group!r} were given. "
            f"One of them decides the split. Drop the other."
        )
    if isinstance(groups, str) and groups != "auto":
        raise ArgumentError(f"groups={groups!r} was given. It must be a whole number or 'auto'. Pass one of these.")
