"""Which filters may be scaled: those whose scale the norm behind them takes back, whatever else the network does.

That is tried out instead of read off the code: on a copy of the trained network filters are multiplied by powers of two
of either sign, and the norm's running mean and weight so that nothing changes, which is exact. If anything changes on a
few images, then something else reads the map, or the filters, or the module is not linear in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from batchfree.convert._batches import Forward, networks_forward, tensors_in
from batchfree.convert._dataflow import Dataflow, copy_of, dataflow_of_run, without_traces
from batchfree.convert._filter_scales import scale_filters
from batchfree.convert._kinds import is_batch_norm
from batchfree.convert._paired_run import blaming
from batchfree.torch import WSConv1d, WSConv2d, WSConv3d

__all__ = ["own_filters"]

#: Of the first batch.
IMAGES = 4
#: Of a map or an output, by its size: more than rounding on a device that does not repeat its sums.
TOLERANCE = 1e-3


class _Pair(NamedTuple):
    """A convolution and the norm that reads it, by name, in the copy of the original."""

    norm: str
    convolution: str
    #: What is multiplied by a factor per filter, and what is divided by it.
    multiplied: list[Tensor]
    divided: Tensor


def own_filters(
    original: nn.Module, converted: nn.Module, batch: Any, forward: Forward | None
) -> dict[str, list[nn.Parameter]]:
    """By the names of norms: the Parameters of `converted` with which the filters before a norm can be scaled.

    Raises:
        ArgumentError: the original cannot run on `batch`.
        ConversionError: it cannot be copied.
    """
    run = forward or networks_forward
    few = batch[:IMAGES] if forward is None and isinstance(batch, Tensor) else batch
    probe = copy_of(original).eval()
    with blaming("original", batch):
        try:
            flow = dataflow_of_run(probe, lambda: run(probe, few))
        except Exception:  # one that needs its batch whole, as where frames are a part of it
            few = batch
            flow = dataflow_of_run(probe, lambda: run(probe, few))
    places = dict(converted.named_modules())
    held = {_memory(parameter) for parameter in original.parameters()}
    pairs = list(_pairs(probe, flow))
    parameters = {
        pair.norm: found
        for pair in pairs
        if (found := _per_filter(places.get(pair.convolution)))
        and not any(_memory(parameter) in held for parameter in found)
    }
    pairs = [pair for pair in pairs if pair.norm in parameters]

    def results() -> list[Tensor]:
        return _results(probe, lambda: run(probe, few))

    before = results()
    return {pair.norm: parameters[pair.norm] for pair in _harmless(pairs, results, before)} if before else {}


def _pairs(probe: nn.Module, flow: Dataflow) -> Iterator[_Pair]:
    """Each norm that is called once, on what a convolution gives."""
    for name, reading in flow.norms.items():
        norm = probe.get_submodule(name)
        mean, weight = getattr(norm, "running_mean", None), getattr(norm, "weight", None)
        for convolution in reading.convolutions:
            filters = _per_filter(probe.get_submodule(convolution))
            if filters and reading.calls == 1 and mean is not None and weight is not None:
                yield _Pair(name, convolution, [*filters, mean], weight)


def _per_filter(conv: nn.Module | None) -> list[nn.Parameter]:
    """What to multiply so that each filter's output is; nothing where that is not known."""
    if not isinstance(conv, _ConvNd) or conv.transposed:
        return []
    names = ("gain", "offset", "bias") if isinstance(conv, (WSConv1d, WSConv2d, WSConv3d)) else ("weight", "bias")
    first, *others = [conv._parameters.get(name) for name in names]
    return [] if first is None else [first, *(parameter for parameter in others if parameter is not None)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _harmless(pairs: list[_Pair], results: Callable[[], list[Tensor]], before: list[Tensor]) -> list[_Pair]:
    """Those that can be scaled without a change of the results, found by halves."""
    if not pairs:
        return []
    with _scaled(pairs):
        after = results()
    if len(after) == len(before) and all(map(_same, after, before)):
        return pairs
    half = len(pairs) // 2
    return [] if half == 0 else [*_harmless(pairs[:half], results, before), *_harmless(pairs[half:], results, before)]


@contextmanager
def _scaled(pairs: list[_Pair]) -> Iterator[None]:
    changed = [tensor for pair in pairs for tensor in (*pair.multiplied, pair.divided)]
    kept = [tensor.detach().clone() for tensor in changed]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        try:
            for pair in pairs:
                factors = torch.tensor([-2.0, -0.5, 0.5, 2.0])[
                    torch.randint(4, pair.divided.shape, generator=generator)
                ]
                scale_filters(pair.multiplied, factors)
                pair.divided.div_(factors.to(pair.divided))
            yield
        finally:
            for tensor, value in zip(changed, kept, strict=True):
                tensor.copy_(value)


def _results(probe: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """Averages of what every norm gives, and what the network returns; nothing where that holds no tensor."""
    given: list[Tensor] = []

    def keep(_norm: nn.Module, _inputs: Any, output: Any) -> None:
        channels = [each.transpose(0, 1).flatten(1).float() for each in tensors_in(output) if each.dim() > 1]
        given.extend(torch.stack([each.mean(1), each.abs().mean(1)]) for each in channels)

    with ExitStack() as hooks:
        for module in probe.modules():
            if is_batch_norm(module):
                hooks.callback(module.register_forward_hook(keep).remove)
        with without_traces(probe):
            returned = list(tensors_in(run()))
    return [*given, *returned] if returned else []


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return bool((one - other).norm() <= TOLERANCE * other.norm())
