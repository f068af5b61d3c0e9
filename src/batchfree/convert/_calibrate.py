"""Fitting a converted network's affine parameters to the trained one, norm by norm, on a few unlabelled images."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from batchfree.convert._agreement import Agreement
from batchfree.convert._batches import Forward, Images, evaluating, networks_forward, read_batches
from batchfree.convert._calibration_report import CalibrationReport, CalibrationRow
from batchfree.convert._filter_scales import filter_scales, scale_filters
from batchfree.convert._map_moments import MapMoments, Observation, covariance, map_moments
from batchfree.convert._norm_fit import Fit, candidate_eps, candidate_groups, fit_norm
from batchfree.convert._norm_pairs import NormPair, norm_pairs
from batchfree.convert._own_filters import own_filters
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
    filters: Choice = "keep",
    forward: Forward | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CalibrationReport:
    """Sets each Group Norm's weight and bias so that it gives what the Batch Norm gave; 64 images are enough.

    For each norm, as the forward pass reaches it: t is the old norm's evaluation output in `original`, z the new norm's
    input in `converted`, normalised in its groups; then per channel weight = +-std(t) / std(z), with the sign of their
    correlation, and bias = mean(t) - weight * mean(z). Both networks run once on each batch, at the same time, and wait
    for each other at every norm: the fit sees all images, and what follows sees the fit. Any number of batches
    give what one big batch would give.

    Args:
        converted: `convert(original, ...)`; changed in place.
        original: the trained network; left as it is. Both run in evaluation mode and get their training flags back.
        images: a tensor (N, channels, ...), or a list or DataLoader of batches. Of a batch that is a tuple or list only
            the first entry is used, so that labels are ignored; one that is a dict gives keyword arguments. The maps
            that each network needs at one time are held for all images together.
        groups: "keep" the numbers of groups; "auto": choose each norm's by the same fit, with at least 8 channels and
            8 values per group where the norm has them.
        eps: "keep" each norm's epsilon; "auto": choose it by the same fit, up to the variance of its groups. Such a
            norm takes away less of what tells images apart, as the old one did, and so keeps more of most trained
            networks.
        filters: "keep" all convolutions as they are; "auto": multiply the filters before a norm, so that the channels
            of a group vary alike and their means cancel. The norm's weight takes the factors back: what the layers can
            express is the same, and Group Norm takes less away from a sample. Use it with `eps="auto"`, which may then
            go up to ten times the variance; without, little is gained. Filters stay where `original` says that
            something else depends on them: a copy of it runs on some of the images with scaled filters, and nothing may
            change. (What a hook keeps of a convolution's output, to be read later, is not seen by that.)
        forward: how a network runs on one batch, for several inputs: `lambda network, batch: network(*batch)`.
        on_progress: called with how many norms are fitted, and how many there are.

    Returns:
        Every norm's fit and the agreement of the outputs. `convert(original, groups=report.groups, eps=report.eps)`,
        with the same `ws`, builds a network that takes the fitted `state_dict`. A norm that no image reaches keeps its
        affine parameters and is noted; a channel that is constant on the images gets the weight 0.

    Raises:
        ArgumentError: there are no images, they hold or lead to NaN or infinity, or the networks cannot run on them.
        ConversionError: the networks disagree in architecture, or in the norms that one batch passes through; or, for
            `filters="auto"`, the original cannot be copied.
        All of them leave `converted` as it was.

    Differs from copying Batch Norm's weight and bias, which costs a trained network nearly all of its accuracy.

    >>> report = calibrate(convert(network), network, images)
    """
    for name, choice in (("groups", groups), ("eps", eps), ("filters", filters)):
        if choice not in get_args(Choice):
            raise ArgumentError(unknown_name(f"choice of {name}", str(choice), get_args(Choice)))
    pairs = norm_pairs(original, converted)
    batches = read_batches(images, original, forward)
    run = forward or networks_forward
    scalable = own_filters(original, converted, batches[0], forward) if filters == "auto" else {}
    with evaluating(original, converted), _all_or_nothing(pairs, scalable), ExitStack() as hooks:
        stop_at_norms(hooks, pairs)
        runs = [PairedRun(run, original, converted, batch) for batch in batches]
        for each in runs:
            hooks.callback(each.cancel)
        norms = {pair.name: _Progress(pair, pair.sign, scalable.get(pair.name)) for pair in pairs}
        reached = _fit_in_forward_order(norms, runs, groups, eps, on_progress)
        agreement = Agreement()
        for each in runs:
            agreement.add(*each.outputs)
    rows = tuple(_row(progress, pairs) for progress in norms.values())
    count = sum(len(observation.given.mean) for observation in reached[0].seen) if reached else 0
    unlikeness = statistics.fmean(reached[0].unlikeness) if reached else 1.0
    return CalibrationReport(rows, count, unlikeness, agreement.top1, agreement.relative_error)


@dataclass
class _Progress:
    """What is known of one norm, between its calls."""

    pair: NormPair
    sign: Tensor  # (C,) of its weight
    filters: list[nn.Parameter] | None  # of the convolution before it, where they may be scaled
    seen: list[Observation] = field(default_factory=list)
    smallest_map: int | None = None
    unlikeness: list[float] = field(default_factory=list)  # of each batch to the images of the training
    fit: Fit | None = None

    def observe(self, run: PairedRun) -> None:
        """Takes in what waits before the norm."""
        x, y = run.maps()
        if len(x) and len(y):  # a detector may propose nothing
            observation, unlikeness = _observe(self.pair, x, y)
            self.seen.append(observation)
            self.unlikeness.append(unlikeness)
            size = y[0, 0].numel()
            self.smallest_map = size if self.smallest_map is None else min(self.smallest_map, size)

    def balance(self, runs: list[PairedRun], num_groups: int) -> None:
        """Scales the filters that gave the waiting maps, and these."""
        if self.filters is None or self.fit is not None:
            return
        if any(observation.covariance is None for observation in self.seen):  # of maps by which no sign can be told
            self.filters = None
            return
        scales = filter_scales(self.seen, num_groups)
        scale_filters(self.filters, scales)
        for run in runs:
            run.scale(scales)
        self.seen = [observation.scaled(scales) for observation in self.seen]
        self.sign = self.sign * scales.sign()


def _fit_in_forward_order(
    norms: dict[str, _Progress],
    runs: list[PairedRun],
    groups: Choice,
    eps: Choice,
    on_progress: Callable[[int, int], None] | None,
) -> list[_Progress]:
    """The norms that were reached, in that order."""
    reached: list[_Progress] = []
    while (name := common_norm([run.advance() for run in runs])) is not None:
        progress = norms[name]
        for run in runs:
            progress.observe(run)
        if progress.smallest_map is not None:
            norm = progress.pair.new
            auto = candidate_groups(norm.num_channels, progress.smallest_map)
            counts = auto if groups == "auto" else [norm.num_groups]
            progress.balance(runs, max(counts))  # larger groups are made of these, or nearly so
            if progress.fit is None:
                reached.append(progress)
            progress.fit = _best_fit(progress, counts, eps)
            _apply(norm, progress.fit)
        if on_progress is not None:
            on_progress(len(reached), len(norms))
    return reached


def _observe(pair: NormPair, x: Tensor, y: Tensor) -> tuple[Observation, float]:
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
    return Observation(target, new, joint), pair.unlikeness(*old.over_samples())


def _best_fit(progress: _Progress, counts: list[int], eps: Choice) -> Fit:
    norm, seen = progress.pair.new, progress.seen
    fit = partial(
        fit_norm, seen, sign=progress.sign, has_weight=norm.weight is not None, has_bias=norm.bias is not None
    )
    kept = fit(norm.num_groups, norm.eps)
    if kept.error is None:  # nothing to choose by
        return kept

    def values(count: int) -> list[float]:
        if eps == "keep":
            return [norm.eps]
        return candidate_eps(seen, count, progress.pair.eps, is_scaled=progress.filters is not None)

    return min((fit(count, value) for count in counts for value in values(count)), key=lambda each: each.error or 0.0)


def _apply(norm: nn.GroupNorm, fit: Fit) -> None:
    norm.num_groups, norm.eps = fit.num_groups, fit.eps
    with torch.no_grad():
        if norm.weight is not None:
            norm.weight.copy_(fit.weight)
        if norm.bias is not None:
            norm.bias.copy_(fit.bias)


@contextmanager
def _all_or_nothing(pairs: list[NormPair], scalable: Mapping[str, list[nn.Parameter]]) -> Iterator[None]:
    """What is fitted, as it was if anything fails."""
    settings = [(pair.new, pair.new.num_groups, pair.new.eps) for pair in pairs]
    changing = [parameter for pair in pairs for parameter in pair.new.parameters(recurse=False)]
    changing += [parameter for filters in scalable.values() for parameter in filters]
    values = [parameter.detach().clone() for parameter in changing]
    try:
        yield
    except BaseException:
        for norm, num_groups, eps in settings:
            norm.num_groups, norm.eps = num_groups, eps
        with torch.no_grad():
            for parameter, value in zip(changing, values, strict=True):
                parameter.copy_(value)
        raise


def _row(progress: _Progress, pairs: list[NormPair]) -> CalibrationRow:
    pair, fit = progress.pair, progress.fit
    norm = pair.new
    if fit is None:
        note = "not reached; left as it was"
        return CalibrationRow(pair.name, norm.num_channels, norm.num_groups, norm.eps, None, note=note)
    missing = [name for name in ("weight", "bias") if getattr(norm, name) is None]
    note = f"it has no {' and no '.join(missing)} to fit" if missing else ""
    own = set(norm.parameters(recurse=False))
    tied = [each.name for each in pairs if each is not pair and own & set(each.new.parameters(recurse=False))]
    if tied:
        note = f"it shares parameters with {', '.join(tied)}, and what was fitted last stands in all of them"
    return CalibrationRow(
        pair.name,
        norm.num_channels,
        norm.num_groups,
        norm.eps,
        fit.error,
        dead_channels=fit.dead_channels,
        filters_scaled=progress.filters is not None,
        note=note,
    )
