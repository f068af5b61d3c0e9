"""Bringing a calibrated network still nearer to the one it came from, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchfree.convert._agreement import Agreement, class_scores
from batchfree.convert._batches import Forward, Images, evaluating, networks_forward, read_batches, tensors_in
from batchfree.convert._norm_maps import NormMaps
from batchfree.convert._norm_pairs import norm_pairs
from batchfree.errors import ArgumentError, unknown_name

__all__ = ["RecoveryReport", "Trained", "recover"]

#: Which parameters move: the affine ones of the converted norms, or all.
Trained: TypeAlias = Literal["norm", "all"]
#: Adam's steps that mended every network tried. Ten times as much wrecked calibrated ones.
LEARNING_RATES: dict[str, float] = {"norm": 2e-3, "all": 3e-3}
#: Weight of the maps' distance beside the outputs' at the start. Of 0, 1, 10 and 30, with rates from 1e-3 to 1e-2,
#: these kept most of a ResNet-20 with strict Weight Standardization. Affine parameters alone cannot bring the maps
#: nearer than calibration has.
MAPS_SHARE: dict[str, float] = {"norm": 0.0, "all": 30.0}
HELD_OUT_SHARE = 5  # one image of so many
TIMES_MEASURED = 20
TOLERATED_RISE = 1.2  # of the held-out loss over the best one, before it goes back to that


@dataclass(frozen=True)
class RecoveryReport:
    """How far the two networks agree on images that were held out, before and after; `print` shows it."""

    steps: int
    #: The step whose state was kept; 0 is the network as it was given.
    kept_step: int
    held_out: int
    #: What was held out: images, or whole batches where images cannot be told apart.
    held_out_unit: Literal["image", "batch"]
    #: Mean divergence of the class probabilities (Kullback-Leibler), or relative squared error of other outputs.
    loss_before: float
    loss_after: float
    #: Share of equal classes; `None` where the outputs are no class scores.
    top1_agreement_before: float | None
    top1_agreement_after: float | None

    def __str__(self) -> str:
        several = {"image": "images", "batch": "batches"}[self.held_out_unit]
        judges = f"{self.held_out} held-out {self.held_out_unit if self.held_out == 1 else several}"
        lines = [f"kept the state of step {self.kept_step} of {self.steps}, by {judges}"]
        if self.top1_agreement_before is not None and self.top1_agreement_after is not None:
            lines.append(
                f"top-1 agreement: {100 * self.top1_agreement_before:.1f} % -> {100 * self.top1_agreement_after:.1f} %"
            )
        lines.append(f"distance of the outputs: {self.loss_before:.4g} -> {self.loss_after:.4g}")
        return "\n".join(lines)


def recover(
    converted: nn.Module,
    original: nn.Module,
    images: Images,
    steps: int = 200,
    *,
    parameters: Trained = "norm",
    learning_rate: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    forward: Forward | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> RecoveryReport:
    """Trains `converted` to give the outputs of `original`; on held-out images it never ends worse than it began.

    Adam with a cosine schedule minimises the divergence of the class probabilities, KL(original || converted), or the
    squared error where the outputs are no class scores. Where all parameters move, it also brings what each norm gives
    nearer to what the old one gave, with a weight that falls to zero: an image has few outputs and many maps (Romero et
    al. 2015, arXiv 1412.6550). One image of five is held out; the state is kept that is
    nearest on them and agrees there on as many classes as the given one, which is a candidate too. Where the distance
    on them rises, it goes back to that state and on with half the learning rate.

    Args:
        converted: calibrated; changed in place. Both networks run in evaluation mode.
        original: left as it is.
        images: as for `calibrate`, unlabelled; 512 are enough. Tensors are shuffled and drawn image by image; other
            batches are taken whole, at least two.
        parameters: "norm": the affine ones of the converted norms alone; "all" is for networks whose function changed
            more, as with strict Weight Standardization. `requires_grad` does not matter here and stays.
        learning_rate: of Adam at the start; 2e-3 for "norm" and 3e-3 for "all" where `None`.
        batch_size: images per step.
        seed: of the order of images; the same seed gives the same result.
        forward: as for `calibrate`; a detector needs one that returns tensors, such as its backbone's maps. A network
            that gives (N, K) numbers and no class scores needs `lambda network, batch: [network(batch)]`.
        on_progress: called with how many steps are done, and how many there are.

    Raises:
        ArgumentError: there are fewer than two images, they hold NaN or infinity, an argument is not allowed, or the
            outputs of the two networks cannot be compared.
        ConversionError: the networks do not fit together.
        Whatever is raised, `converted` is then as it was.
    """
    _check_arguments(steps, parameters, learning_rate, batch_size)
    pairs = norm_pairs(original, converted)
    pool = _Pool(read_batches(images, original, forward), batch_size, seed)
    norms = [parameter for pair in pairs for parameter in pair.new.parameters(recurse=False)]
    moved = list(dict.fromkeys(norms if parameters == "norm" else converted.parameters()))
    if not moved:
        raise ArgumentError(
            "the converted norms have no weight and bias. parameters='norm' needs some. Pass parameters='all'."
        )
    run = forward or networks_forward
    rate = LEARNING_RATES[parameters] if learning_rate is None else learning_rate
    with evaluating(original, converted), _training_only(converted, moved):
        distiller = _Distiller(original, converted, run, pool, NormMaps(pairs), MAPS_SHARE[parameters])
        return distiller.train(moved, steps, rate, on_progress or (lambda done, total: None))


class _Pool:
    """The images to train on, in a seeded order, and those held out."""

    def __init__(self, batches: list[Any], batch_size: int, seed: int) -> None:
        kinds = {(batch.shape[1:], batch.dtype) if isinstance(batch, Tensor) else None for batch in batches}
        self.units: Tensor | Sequence[Any] = batches
        self.unit: Literal["image", "batch"] = "batch"
        self.unit_batch = 1
        if None not in kinds and len(kinds) == 1:
            self.units, self.unit, self.unit_batch = torch.cat(batches), "image", batch_size
        if len(self.units) < 2:
            raise ArgumentError(
                f"{len(self.units)} image or batch was given. At least two are needed: one to train on, and one to "
                f"tell whether it helped. Pass more; 512 images are enough."
            )
        self._generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.units), generator=self._generator)
        self._held_out = order[: max(1, len(order) // HELD_OUT_SHARE)]
        self._trained = order[len(self._held_out) :]

    @property
    def held_out(self) -> int:
        return len(self._held_out)

    def held_out_batches(self) -> Iterator[Any]:
        for chosen in torch.split(self._held_out, self.unit_batch):
            yield self._batch(chosen)

    def training_batches(self) -> Iterator[Any]:
        """Without end, each pass in another order."""
        while True:
            order = self._trained[torch.randperm(len(self._trained), generator=self._generator)]
            for chosen in torch.split(order, self.unit_batch):
                yield self._batch(chosen)

    def _batch(self, chosen: Tensor) -> Any:
        return self.units[chosen] if isinstance(self.units, Tensor) else self.units[int(chosen)]


class _Distiller:
    def __init__(
        self,
        original: nn.Module,
        converted: nn.Module,
        run: Forward,
        pool: _Pool,
        norm_maps: NormMaps,
        maps_share: float,
    ) -> None:
        self.original, self.converted, self.run, self.pool = original, converted, run, pool
        self.norm_maps, self.maps_share = norm_maps, maps_share
        self.held_out = [(batch, self._wanted(batch)) for batch in pool.held_out_batches()]

    def train(
        self, moved: list[nn.Parameter], steps: int, rate: float, on_progress: Callable[[int, int], None]
    ) -> RecoveryReport:
        loss_before, agreed_before = self._measure()
        loss_after, agreed_after, kept_step = loss_before, agreed_before, 0
        given = kept = [parameter.detach().clone() for parameter in moved]
        try:
            optimizer = torch.optim.Adam(moved, rate)
            caution = 1.0
            every = max(1, steps // TIMES_MEASURED)
            for step, batch in zip(range(1, steps + 1), self.pool.training_batches(), strict=False):
                remaining = 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
                optimizer.param_groups[0]["lr"] = caution * rate * remaining
                self._step(optimizer, batch, remaining * self.maps_share)
                on_progress(step, steps)
                if step % every == 0 or step == steps:
                    loss, agreed = self._measure()
                    if loss < loss_after and (agreed_before is None or (agreed or 0.0) >= agreed_before):
                        loss_after, agreed_after, kept_step = loss, agreed, step
                        kept = [parameter.detach().clone() for parameter in moved]
                    elif not loss < TOLERATED_RISE * loss_after:  # NaN too: back, and go on in smaller steps
                        _put_back(moved, kept)
                        optimizer = torch.optim.Adam(moved, rate)
                        caution /= 2
        except BaseException:
            kept = given
            raise
        finally:
            _put_back(moved, kept)
        return RecoveryReport(
            steps=steps,
            kept_step=kept_step,
            held_out=self.pool.held_out,
            held_out_unit=self.pool.unit,
            loss_before=loss_before,
            loss_after=loss_after,
            top1_agreement_before=agreed_before,
            top1_agreement_after=agreed_after,
        )

    def _step(self, optimizer: torch.optim.Optimizer, batch: Any, maps_share: float) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad(), self.norm_maps.recording() if maps_share else nullcontext():
            loss = _distance(self._wanted(batch), self.run(self.converted, batch))
            if not loss.requires_grad:
                raise ArgumentError(
                    "the network's outputs carry no gradient. They must depend on its parameters through "
                    "differentiable operators. Pass forward= that returns its scores or maps."
                )
            if maps_share:
                loss = loss + maps_share * self.norm_maps.distance().to(loss.device)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def _wanted(self, batch: Any) -> Any:
        with torch.no_grad():
            return self.run(self.original, batch)

    def _measure(self) -> tuple[float, float | None]:
        """Mean loss and top-1 agreement on the held-out images."""
        agreement, total, count = Agreement(), 0.0, 0
        with torch.no_grad():
            for batch, wanted in self.held_out:
                given = self.run(self.converted, batch)
                agreement.add(wanted, given)
                size = len(batch) if isinstance(batch, Tensor) else 1
                total += _distance(wanted, given).item() * size
                count += size
        return total / count, agreement.top1


def _put_back(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _distance(wanted: Any, given: Any) -> Tensor:
    old, new = class_scores(wanted), class_scores(given)
    if old is not None and new is not None and old.shape == new.shape:
        # over pixels too, where there are some
        old, new = (scores.float().movedim(1, -1).flatten(0, -2).log_softmax(1) for scores in (old, new))
        return F.kl_div(new, old, reduction="batchmean", log_target=True)
    before, after = ([value for value in tensors_in(output) if value.is_floating_point()] for output in (wanted, given))
    if not before or [value.shape for value in before] != [value.shape for value in after]:
        raise ArgumentError(
            f"the outputs cannot be compared: shapes {[tuple(value.shape) for value in before]} of the original and "
            f"{[tuple(value.shape) for value in after]} of the converted network. They must be tensors of equal "
            f"shapes. Pass forward= that returns such, for a detector `lambda network, batch: network.backbone(batch)`."
        )
    squares = torch.stack([(a.float() - b.float()).square().sum() for a, b in zip(before, after, strict=True)]).sum()
    return squares / torch.stack([a.float().square().sum() for a in before]).sum().clamp_min(1e-12)


@contextmanager
def _training_only(network: nn.Module, moved: list[nn.Parameter]) -> Iterator[None]:
    """Gradients for `moved` alone; every flag and gradient comes back."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    chosen = {id(parameter) for parameter in moved}
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, requires_grad, gradient in before:
            parameter.grad = gradient
            parameter.requires_grad_(requires_grad)


def _check_arguments(steps: int, parameters: str, learning_rate: float | None, batch_size: int) -> None:
    if parameters not in get_args(Trained):
        raise ArgumentError(unknown_name("choice of parameters", str(parameters), get_args(Trained)))
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{name}={value!r} was given. It must be a whole number of at least 1. Pass one.")
    if learning_rate is not None and not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ArgumentError(
            f"learning_rate={learning_rate!r} was given. It must be positive and finite. Leave it out for the default."
        )
