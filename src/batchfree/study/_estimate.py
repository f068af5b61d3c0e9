"""What a study would run and how long that takes, before anything starts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from batchfree.records import CellConfig, Start, last_epochs
from batchfree.study._arm import NetworkImages, build_network
from batchfree.study._augment import augment
from batchfree.study._data import ImageData
from batchfree.study._definition import Study
from batchfree.study._engine import LocalEngine
from batchfree.study._evaluation import RECOMPUTING_IMAGES, VALIDATION_BATCH, evaluate
from batchfree.study._run import check_names, plan_loaded
from batchfree.study._runner import is_finished

__all__ = ["ArmEstimate", "StudyEstimate", "estimate_study"]

WARM_UP_STEPS, TIMED_STEPS = 2, 4
#: Importing torch and reading the data, once per run.
START_SECONDS = 5.0
#: What is made of the trained network before the first step is not timed: there is none yet.
UNTIMED: dict[Start, str] = {"calibrated": "and its calibration", "recovered": "and its calibration and recovery"}


@dataclass(frozen=True)
class ArmEstimate:
    """One arm, over its seeds."""

    label: str
    runs: int
    missing: int
    seconds_per_run: float | None  # None where nothing is missing or it is skipped
    note: str  # why it is skipped, or what the seconds leave out


@dataclass(frozen=True)
class StudyEstimate:
    """All arms; `seconds` is the time of all missing runs, one after the other."""

    arms: tuple[ArmEstimate, ...]
    slots: int  # runs at the same time on this machine

    @property
    def runs(self) -> int:
        """Of all arms."""
        return sum(arm.runs for arm in self.arms)

    @property
    def missing(self) -> int:
        """Without a result that stays."""
        return sum(arm.missing for arm in self.arms)

    @property
    def seconds(self) -> float:
        """Of all missing runs, one after the other."""
        return sum(arm.missing * (arm.seconds_per_run or 0.0) for arm in self.arms)


def estimate_study(study: Study, out: Path, *, download: bool = False) -> StudyEstimate:
    """Builds each arm that is missing in `out` and times a few steps of it; nothing is written.

    Raises:
        StudyError, DataError, ConversionError: as `plan_study`.
    """
    check_names(study)
    study = study.decided(download=download)
    sources = study.load(download=download)
    loaded = {fingerprint: data for data, fingerprint in sources.values()}
    plan = plan_loaded(study, sources)
    by_arm: dict[str, list[CellConfig]] = {}
    for cell in plan.cells:
        by_arm.setdefault(cell.arm_id, []).append(cell)
    arms = []
    for cells in by_arm.values():
        first = cells[0]
        reason = plan.skipped.get(first.cell_id, "")
        missing = 0 if reason else sum(not is_finished(out, cell) for cell in cells)
        seconds = _seconds_per_run(first, loaded[first.data_fingerprint]) if missing else None
        label = ", ".join(f"{axis}={value}" for axis in study.axes if (value := getattr(first, axis)) is not None)
        label = f"pre-training, {label}" if first.keeps_weights else label
        note = f"skipped: {reason}" if reason else UNTIMED.get(first.start, "") if missing else ""
        arms.append(ArmEstimate(label or first.norm, len(cells), missing, seconds, note))
    threads = max(arm.threads * arm.workers for arm in study.runs)
    return StudyEstimate(tuple(arms), LocalEngine(None, threads).slots or 1)


def _seconds_per_run(cell: CellConfig, data: ImageData) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(cell.threads)
    try:
        few = data.take(min(cell.train_images, (WARM_UP_STEPS + TIMED_STEPS) * cell.sgd_batch))
        network = build_network(cell, data).to(cell.device).train()
        images = NetworkImages(cell, few)
        for step in range(WARM_UP_STEPS + TIMED_STEPS):
            if step == WARM_UP_STEPS:
                began = time.perf_counter()
            chosen = torch.arange(cell.sgd_batch) % len(few.train_images)
            pixels = None
            if cell.augment != "none":
                pixels = augment(
                    few.train_images[chosen],
                    chosen.tolist(),
                    kind=cell.augment,
                    image_size=cell.image_size,
                    seed=0,
                    epoch=step,
                )
            scores = network(images.training(chosen, pixels))
            loss = F.cross_entropy(scores, few.train_labels[chosen].to(cell.device))
            loss.backward()  # type: ignore[no-untyped-call]
        per_step = (time.perf_counter() - began) / TIMED_STEPS
        validation, labels = images.validation()
        began = time.perf_counter()
        timed = VALIDATION_BATCH * TIMED_STEPS
        evaluate(network, validation[:timed], labels[:timed])
        per_image = (time.perf_counter() - began) / min(len(validation), timed)
    finally:
        torch.set_num_threads(threads)
    evaluations = cell.epochs * len(validation)
    if cell.norm in ("bn", "bn+ws"):  # once more in the last epochs, with statistics computed anew
        evaluations += last_epochs(cell.epochs) * (len(validation) + min(RECOMPUTING_IMAGES, cell.train_images))
    return START_SECONDS + cell.total_steps * per_step + evaluations * per_image
