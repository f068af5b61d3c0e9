"""Fitting a converted network's affine parameters to the trained one, norm by norm, on a few unlabelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from batchfree.convert._agreement import Agreement
from batchfree.convert._batches import Forward, Images, evaluating, networks_forward, read_batches
from batchfree.convert._calibration_report import CalibrationReport, CalibrationRow
from batchfree.convert._norm_fit import (
    Fit,
    MapMoments,
    Observation,
    candidate_eps,
    candidate_groups,
    covariance,
    fit_norm,
    map_moments,
)
from batchfree.convert._norm_pairs import NormPair, norm_pairs
from batchfree.convert._paired_run import PairedRun, common_norm, stop_at_norms
from batchfree.errors import ArgumentError, unknown_name

__all__ = ["Choice", "calibrate"]

#: What of a norm stays, and what the fit chooses.
Choice: TypeAlias = Literal["keep", "auto"]


def calibrate(
    converted: nn.Module,
    original: nn.Module,
    images: Images,
    *,
    groups: Choice = "keep",
    eps: Choice = "keep",
    forward: Forward | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CalibrationReport:
    """Sets each Group Norm's weight and bias so that it gives what the Batch Norm gave; 64 images are enough.

    For each norm, as the forward pass reaches it: t is the old norm's evaluation output in `original`, z the new norm's
    input in `converted`, normalised in its groups; then per channel weight = +-std(t) / std(z), with the sign of the
    old weight, and bias = mean(t) - weight * mean(z). Both networks run once on each batch, at the same time, and wait
    for each other at every norm: the fit sees all images, and what follows sees the fit. Any number of batches
    give what one big batch would give.

    Args:
        converted: `convert(original, ...)`; changed in place.
        original: the trained network; left as it is. Both run in evaluation mode and get their training flags back.
        images: a tensor (N, channels, ...), or a list or DataLoader of batches. Of a batch that is a tuple or list only
            the first entry is used, so that labels are ignored; one that is a dict gives keyword arguments. The maps
            that each network needs at one time are held for all images together.
        groups: "keep" the numbers of groups; "auto": choose each norm's by the same fit, with at least 8 channels and
            8 values per group where the norm has them. The report's `groups` rebuild that network with `convert`.
        eps: "keep" each norm's epsilon; "auto": choose it by the same fit, up to the variance of its groups. Such a
            norm takes away less of what tells images apart, as the old one did, and so keeps more of most trained
            networks; the report's `eps` rebuild it.
        forward: how a network runs on one batch, for several inputs: `lambda network, batch: network(*batch)`.
        on_progress: called with how many norms are fitted, and how many there are.

    Returns:
        Every norm's fit and the agreement of the outputs. A norm that no image reaches keeps its affine parameters and
        is noted; a channel that is constant on the images gets the weight 0.

    Raises:
        ArgumentError: there are no images, they hold or lead to NaN or infinity, or the networks cannot run on them.
        ConversionError: the networks disagree in architecture, or in the norms that one batch passes through.
        All of them leave `converted` as it was.

    Differs from copying Batch Norm's weight and bias, which costs a trained network nearly all of its accuracy.

    >>> report = calibrate(convert(network), network, images)
    """
    for name, choice in (("groups", groups), ("eps", eps)):
        if choice not in get_args(Choice):
            raise ArgumentError(unknown_name(f"choice of {name}", str(choice), get_args(Choice)))
    pairs = norm_pairs(original, converted)
    batches = read_batches(images, original, forward)
    run = forward or networks_forward
    with evaluating(original, converted), _all_or_nothing(pairs), ExitStack() as hooks:
        stop_at_norms(hooks, pairs)
        runs = [PairedRun(run, original, converted, batch) for batch in batches]
        for each in runs:
            hooks.callback(each.cancel)
        fits = _fit_in_forward_order(pairs, runs, groups, eps, on_progress)
        agreement = Agreement()
        for each in runs:
            agreement.add(*each.outputs)
    rows = tuple(_row(pair, fits.get(pair.name), pairs) for pair in pairs)
    return CalibrationReport(rows, agreement.top1, agreement.relative_error)


def _fit_in_forward_order(
    pairs: list[NormPair],
    runs: list[PairedRun],
    groups: Choice,
    eps: Choice,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Fit]:
    by_name = {pair.name: pair for pair in pairs}
    seen: dict[str, list[Observation]] = {pair.name: [] for pair in pairs}
    smallest: dict[str, int] = {}
    fits: dict[str, Fit] = {}
    while (name := common_norm([run.advance() for run in runs])) is not None:
        pair = by_name[name]
        for run in runs:
            x, y = run.maps()
            if len(x) and len(y):  # a detector may propose nothing
                seen[name].append(_observe(pair, x, y))
                smallest[name] = min(smallest.get(name, y[0, 0].numel()), y[0, 0].numel())
            del x, y
        if seen[name]:
            fits[name] = _best_fit(pair, seen[name], smallest[name], groups, eps)
            _apply(pair.new, fits[name])
        if on_progress is not None:
            on_progress(len(fits), len(pairs))
    return fits


def _observe(pair: NormPair, x: Tensor, y: Tensor) -> Observation:
    old, new = map_moments(x), map_moments(y)
    for which, measured in (("original", old), ("converted network", new)):
        if not (measured.mean.isfinite().all() and measured.variance.isfinite().all()):
            raise ArgumentError(
                f"the images give NaN or infinity in the {which} before the norm {pair.name!r}. Every value must be "
                f"finite. Pass images prepared as for training, and a network whose weights are finite."
            )
    scale, shift = pair.scale_and_shift(*old.over_samples())
    if not (scale.isfinite().all() and shift.isfinite().all()):
        raise ArgumentError(
            f"the original's norm {pair.name!r} holds NaN or infinity. Its weight, bias and running statistics must be "
            f"finite. Load the trained weights again."
        )
    target = MapMoments(old.size, scale * old.mean + shift, scale.square() * old.variance)
    joint = scale * covariance(x, old.mean, y, new.mean) if x.shape == y.shape else None
    return Observation(target, new, joint)


def _best_fit(pair: NormPair, seen: list[Observation], smallest_map: int, groups: Choice, eps: Choice) -> Fit:
    norm = pair.new
    fit = partial(fit_norm, seen, sign=pair.sign, has_weight=norm.weight is not None, has_bias=norm.bias is not None)
    kept = fit(norm.num_groups, norm.eps)
    if kept.error is None:  # nothing to choose by
        return kept
    split = candidate_groups(norm.num_channels, smallest_map) if groups == "auto" else [norm.num_groups]
    fits = [
        fit(count, value)
        for count in split
        for value in (candidate_eps(seen, count, pair.eps) if eps == "auto" else [norm.eps])
    ]
    return min(fits, key=lambda each: each.error or 0.0)


def _apply(norm: nn.GroupNorm, fit: Fit) -> None:
    norm.num_groups, norm.eps = fit.num_groups, fit.eps
    with torch.no_grad():
        if norm.weight is not None:
            norm.weight.copy_(fit.weight)
        if norm.bias is not None:
            norm.bias.copy_(fit.bias)


@contextmanager
def _all_or_nothing(pairs: list[NormPair]) -> Iterator[None]:
    """What is fitted, as it was if anything fails."""
    before = [
        (
            pair.new,
            pair.new.num_groups,
            pair.new.eps,
            [value.detach().clone() for value in pair.new.parameters(recurse=False)],
        )
        for pair in pairs
    ]
    try:
        yield
    except BaseException:
        for norm, num_groups, eps, values in before:
            norm.num_groups, norm.eps = num_groups, eps
            with torch.no_grad():
                for parameter, value in zip(norm.parameters(recurse=False), values, strict=True):
                    parameter.copy_(value)
        raise


def _row(pair: NormPair, fit: Fit | None, pairs: list[NormPair]) -> CalibrationRow:
    norm = pair.new
    if fit is None:
        return CalibrationRow(
            pair.name, norm.num_channels, norm.num_groups, norm.eps, None, 0, "not reached; left as it was"
        )
    missing = [name for name in ("weight", "bias") if getattr(norm, name) is None]
    note = f"it has no {' and no '.join(missing)} to fit" if missing else ""
    own = set(norm.parameters(recurse=False))
    tied = [each.name for each in pairs if each is not pair and own & set(each.new.parameters(recurse=False))]
    if tied:
        note = f"it shares parameters with {', '.join(tied)}, and what was fitted last stands in all of them"
    return CalibrationRow(pair.name, norm.num_channels, norm.num_groups, norm.eps, fit.error, fit.dead_channels, note)
