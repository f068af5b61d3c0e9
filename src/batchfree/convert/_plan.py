"""What a conversion will do to each norm of a network, and why it will not do it to others."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from torch import nn

from batchfree.convert._dataflow import Dataflow, NormReading, copy_of
from batchfree.convert._fusion import Fusions, find_fusions
from batchfree.convert._groups import Groups, GroupsRequest, Norm
from batchfree.convert._kinds import BatchNormFacts, read_batch_norm
from batchfree.convert._layers import own_activation
from batchfree.convert._plan_table import plan_table
from batchfree.convert._refusals import reasons_against
from batchfree.convert._standardize import fan_in, read_dataflow, why_not_standardized
from batchfree.errors import ArgumentError, ConversionError, GroupError, unknown_name

__all__ = ["ConversionPlan", "PlanRow", "Ws", "make_plan", "plan_conversion"]

_UNREACHED = (
    "the data flow did not reach it, so what feeds it is not known. If only training uses it, call model.train() "
    "first; else convert without ws."
)
#: False; True: function-preserving; "strict": for training from scratch.
Ws: TypeAlias = "bool | Literal['strict']"


@dataclass(frozen=True)
class PlanRow:
    """One norm of the network."""

    #: Every dotted name; several where the module is shared.
    names: tuple[str, ...]
    #: The class of the norm.
    kind: str
    #: `None` where a lazy norm does not know.
    channels: int | None
    #: Spatial sizes of the smallest input, () for (N, C); `None` where it was not seen.
    spatial: tuple[int, ...] | None
    #: Of one sample, on that smallest input; `None` where it was not seen.
    values_per_group: int | None
    #: `None` where the norm is refused.
    num_groups: int | None
    groups_reason: str
    #: The convolutions whose outputs it reads, untouched.
    convolutions: tuple[str, ...]
    #: Those of them whose filters are standardised.
    standardizes: tuple[str, ...]
    #: Why others of them stay plain though `ws` was asked for.
    stays_plain: tuple[str, ...]
    #: What of the old norm stays: "weight and bias", "frozen", "SiLU", ...
    keeps: tuple[str, ...]
    #: What `fuse=True` lets it compute besides: "relu", "residual + relu", ...
    fuses: str | None
    #: Why it fuses nothing.
    not_fused: str | None
    #: Every reason why it cannot be converted, each with what to do.
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ConversionPlan:
    """What `convert` does to one network; `print` shows it as a table."""

    #: Class of the network.
    model: str
    norm: Norm
    ws: Ws
    rows: tuple[PlanRow, ...]
    #: Why the network as a whole cannot be converted.
    model_reasons: tuple[str, ...]
    #: What could not be known, and how it could.
    unknown: tuple[str, ...]
    fusions: Fusions = field(repr=False)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything that stands against the conversion; empty where `convert` does it."""
        own = (f"{row.names[0] or '(the model itself)'}: {reason}" for row in self.rows for reason in row.reasons)
        return (*self.model_reasons, *own)

    def __str__(self) -> str:
        return plan_table(self)


def plan_conversion(
    model: nn.Module,
    example_inputs: object = None,
    *,
    norm: Norm = "gn",
    groups: Groups = "auto",
    num_groups: int | None = None,
    channels_per_group: int | None = None,
    ws: Ws = False,
) -> ConversionPlan:
    """What `convert` with the same arguments would do: a row for each norm, and every reason against it.

    Args:
        model: any module; left as it is.
        example_inputs: what one call takes: one object, or the tuple of positional arguments. With them a copy is run
            once; without them `torch.fx` traces it, and sizes are not known.
        norm, groups, num_groups, channels_per_group, ws: as for `convert`.

    Returns:
        The plan, whose `reasons` are empty where the conversion will do.

    Raises:
        ArgumentError: an argument has a value that is not allowed.
        ConversionError: the model does not run on `example_inputs`, or `ws` needs them and they are missing.

    >>> plan = plan_conversion(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU()))
    >>> plan.rows[0].num_groups, plan.rows[0].convolutions, plan.rows[0].fuses
    (2, ('0',), 'relu')
    """
    return make_plan(model, example_inputs, GroupsRequest(norm, groups, num_groups, channels_per_group), ws, fuse=True)


def make_plan(
    model: nn.Module, example_inputs: object, request: GroupsRequest, ws: Ws, *, fuse: bool
) -> ConversionPlan:
    """`plan_conversion`; without `fuse`, what fuses is not looked for."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"a {type(model).__name__} was given as the model. It must be a torch.nn.Module. Pass one.")
    if ws not in (True, False, "strict"):
        raise ArgumentError(f"ws={ws!r} was given. It must be False, True or 'strict'. Pass one of these.")
    reasons = reasons_against(model)
    norms = dict(_norms(model)) if not reasons else {}
    _check_names(request, norms)
    if not norms and not reasons:
        reasons.append(_no_norm(model))
    is_lazy = any(facts.channels is None for facts in norms.values())
    probe = copy_of(model) if norms and not is_lazy else None
    flow, unknown = _look(probe, example_inputs, ws) if probe is not None else (None, ())
    rows = [_row(model, names, facts, request, flow, ws) for names, facts in norms.items()]
    if ws and rows and not any(row.reasons or row.standardizes for row in rows):
        plain = sorted({line for row in rows for line in row.stays_plain})
        reasons.append(
            "no convolution that a norm reads can have standardised filters"
            + (f" ({'; '.join(plain)})" if plain else "")
            + ". Convert without ws."
        )
    fusions = Fusions((), {}, {})
    if fuse and probe is not None and not reasons:
        candidates = [row.names for row in rows if not row.reasons and row.not_fused is None and row.fuses is None]
        fusions = find_fusions(probe, candidates, flow)
        rows = [_with_fusion(row, fusions) for row in rows]
    return ConversionPlan(type(model).__name__, request.norm, ws, tuple(rows), tuple(reasons), tuple(unknown), fusions)


def _norms(model: nn.Module) -> Iterator[tuple[tuple[str, ...], BatchNormFacts]]:
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    for module, all_names in names.items():
        facts = read_batch_norm(module)
        if facts is not None:
            yield tuple(all_names), facts


def _look(model: nn.Module, example_inputs: object, ws: Ws) -> tuple[Dataflow | None, tuple[str, ...]]:
    """The data flow, and what it does not show."""
    if example_inputs is not None:
        return read_dataflow(model, example_inputs), ()
    sizes = "spatial sizes and values per group: nothing was run. Pass example_inputs to see them"
    try:
        return read_dataflow(model, None), (sizes,)
    except ConversionError as error:
        if ws:
            raise
        return None, (sizes, f"which convolution each norm reads: {error}")


def _row(
    model: nn.Module,
    names: tuple[str, ...],
    facts: BatchNormFacts,
    request: GroupsRequest,
    flow: Dataflow | None,
    ws: Ws,
) -> PlanRow:
    reading = None if flow is None else flow.norms.get(names[0])
    seen = reading or NormReading()
    reasons = list(facts.reasons)
    num_groups, why = None, ""
    if facts.channels is not None:
        try:
            num_groups, why = request.choose(names, facts.channels, seen.smallest_map)
        except GroupError as error:
            reasons.append(str(error))
    convolutions = tuple(sorted(seen.convolutions))
    filters = _filters(model, convolutions, flow) if ws and flow is not None else _Filters()
    if ws == "strict":
        reasons += filters.unfit
        if flow is not None and reading is None:
            reasons.append(_UNREACHED)
    activation, not_fused = own_activation(facts)
    values = None
    if num_groups is not None and facts.channels is not None and seen.smallest_map is not None:
        values = facts.channels // num_groups * math.prod(seen.smallest_map)
    return PlanRow(
        names,
        facts.kind,
        facts.channels,
        seen.smallest_map,
        values,
        None if reasons else num_groups,
        why,
        convolutions,
        tuple(filters.standardized),
        (*filters.plain, *filters.unfit),
        _keeps(facts),
        activation,
        not_fused or None,
        tuple(reasons),
    )


@dataclass(frozen=True)
class _Filters:
    """The convolutions that a norm reads, by what Weight Standardization does to them."""

    standardized: list[str] = field(default_factory=list)
    #: Those that must stay as they are, in any form.
    plain: list[str] = field(default_factory=list)
    #: Those that it cannot be done to: they stay plain too, which the strict form refuses.
    unfit: list[str] = field(default_factory=list)


def _filters(model: nn.Module, convolutions: tuple[str, ...], flow: Dataflow) -> _Filters:
    filters = _Filters()
    for name in convolutions:
        conv = model.get_submodule(name)
        if name not in flow.normalised_convolutions:
            filters.plain.append(f"{name}: it is called again where no norm reads it. It stays plain.")
        elif fan_in(conv) < 2:
            filters.plain.append(f"{name}: its fan-in is 1: each filter is its own mean. It stays plain.")
        elif (reason := why_not_standardized(conv)) is not None:
            filters.unfit.append(f"{name}: {reason}")
        else:
            filters.standardized.append(name)
    return filters


def _keeps(facts: BatchNormFacts) -> tuple[str, ...]:
    keeps = [name for name, value in (("weight", facts.weight), ("bias", facts.bias)) if value is not None]
    frozen = [value is None or not value.requires_grad for value in (facts.weight, facts.bias)]
    if keeps and all(frozen):
        keeps.append("frozen")
    layers = [type(layer).__name__ for layer in facts.layers.values() if type(layer) is not nn.Identity]
    return tuple(keeps + layers)


def _with_fusion(row: PlanRow, fusions: Fusions) -> PlanRow:
    fused = fusions.norms.get(row.names[0])
    if fused is not None:
        return replace(row, fuses=str(fused))
    return replace(row, not_fused=fusions.reasons.get(row.names[0], row.not_fused))


def _check_names(request: GroupsRequest, norms: Mapping[tuple[str, ...], object]) -> None:
    known = {name for names in norms for name in names}
    unknown = request.unknown_names(known)
    if unknown and norms:
        raise ArgumentError(unknown_name("norm in groups", unknown[0], sorted(known)))


def _no_norm(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} has no Batch Norm. A model with at least one BatchNorm1d/2d/3d, SyncBatchNorm or "
        f"frozen one is needed. If its norms were fused into the convolutions for inference, convert the network "
        f"before fusing it; else use it as it is."
    )
