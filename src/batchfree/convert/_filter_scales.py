"""Scales of the filters before a norm: with them the channels of a group count alike, and their means cancel.

A Group Norm takes each sample's own mean away, which Batch Norm in evaluation mode leaves in. The mean of a group is
that of its channels: brought to one deviation, and with signs against each other, they sum to little that differs from
sample to sample. The norm's weight takes scale and sign back, so that only the statistics change.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from batchfree.convert._batches import Forward
from batchfree.convert._dataflow import copy_of, dataflow_of_run
from batchfree.convert._map_moments import Observation, joined, over_samples, shares, varies
from batchfree.convert._paired_run import explained
from batchfree.torch import WSConv1d, WSConv2d, WSConv3d

__all__ = ["filter_scales", "own_filters", "scale_filters"]

#: A channel that hardly varies on these images may vary on others: it is not enlarged more than this.
MOST = 10.0
#: Of the search for signs; it ends where no sign is worth turning.
SWEEPS = 10

Array = npt.NDArray[np.float64]


def filter_scales(observations: list[Observation], num_groups: int) -> Tensor:
    """(C,) float64, for what the new norm was given: the typical deviation over each channel's own, with a sign."""
    given = [observation.given for observation in observations]
    share = shares(given)
    mean, variance = joined(given)
    whole, total = over_samples(share, mean, variance)
    deviation = total.sqrt()
    typical = total.mean().sqrt()
    sizes = torch.where(deviation * MOST > typical, typical / deviation, MOST)
    sizes = torch.where(varies(whole, total), sizes, 1.0)
    differing = (share.sqrt() * (mean - whole) * sizes).numpy()
    return sizes * torch.from_numpy(np.concatenate([_signs(part) for part in np.split(differing, num_groups, axis=1)]))


def own_filters(original: nn.Module, converted: nn.Module, batch: Any, run: Forward) -> dict[str, list[nn.Parameter]]:
    """By the names of norms: the Parameters to scale of the convolution that feeds a norm of `converted` alone.

    A copy of `original` runs on a part of `batch` to see which these are.

    Raises:
        ArgumentError: it cannot.
    """
    few = batch[:1] if isinstance(batch, Tensor) else batch
    probe = copy_of(original).eval()
    with explained("original", few):
        flow = dataflow_of_run(probe, lambda: run(probe, few))
    held = Counter(
        parameter for module in converted.modules() for parameter in module.parameters(recurse=False)
    )  # a Parameter that is tied to another place's may not be scaled for one of them
    found: dict[str, list[nn.Parameter]] = {}
    for name, convolution in flow.own_convolutions().items():
        norm = converted.get_submodule(name)
        parameters = _per_filter(converted.get_submodule(convolution))
        weight = getattr(norm, "weight", None)
        if parameters and weight is not None and all(held[each] == 1 for each in (*parameters, weight)):
            found[name] = parameters
    return found


def _per_filter(conv: nn.Module) -> list[nn.Parameter]:
    """What to scale so that a convolution's outputs scale; nothing where that is not known."""
    if type(conv) in (WSConv1d, WSConv2d, WSConv3d):
        named: tuple[str, ...] = ("gain", "offset", "bias")
    elif type(conv) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        named = ("weight", "bias")
    else:
        return []
    found = [conv._parameters.get(name) for name in named]
    return [] if found[0] is None else [parameter for parameter in found if parameter is not None]


def scale_filters(parameters: list[nn.Parameter], scales: Tensor) -> None:
    """Multiplies each filter by its scale."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(scales.to(parameter).reshape(-1, *[1] * (parameter.dim() - 1)))


def _signs(columns: Array) -> Array:
    """A sign for each column such that their sum is short: the longest first, then one after the other once more."""
    signs = np.zeros(columns.shape[1])
    total = np.zeros(len(columns))
    order = np.argsort(-np.linalg.norm(columns, axis=0), kind="stable")
    for _ in range(SWEEPS):
        before = signs.copy()
        for index in order:
            column = columns[:, index]
            rest = total - signs[index] * column
            signs[index] = -1.0 if rest @ column > 0 else 1.0
            total = rest + signs[index] * column
        if np.array_equal(signs, before):
            break
    return signs
