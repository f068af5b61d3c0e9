"""The training of one cell, step by step, and its files."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchfree.errors import StudyError
from batchfree.records import CellConfig, CellResult, Cost, EpochMetrics, last_epochs, read_metrics, summarise
from batchfree.study._arm import NetworkImages, group_counts
from batchfree.study._augment import augment
from batchfree.study._checkpoint import TrainingState, load_checkpoint, save_checkpoint
from batchfree.study._data import ImageData
from batchfree.study._evaluation import RECOMPUTING_IMAGES, evaluate, has_batch_norm, recomputed_statistics
from batchfree.study._mixup import draw_mixup
from batchfree.study._schedules import learning_rate_at
from batchfree.study._workers import Workers

__all__ = ["Training", "TrainingFiles", "image_order"]


@dataclass(frozen=True)
class TrainingFiles:
    """Where a cell is kept while it runs."""

    metrics: Path
    checkpoint: Path
    checkpoint_seconds: float  # between two checkpoints


class Training:
    """A cell in memory. Everything that moves its numbers is in `config`, `data` and the files' last checkpoint.

    Args:
        began: when `time.perf_counter` said that `network` began to be built, which is part of the cost.
    """

    def __init__(
        self,
        config: CellConfig,
        files: TrainingFiles,
        data: ImageData,
        network: nn.Module,
        workers: Workers,
        should_stop: Callable[[], bool],
        began: float,
    ) -> None:
        self.config = config
        self.files = files
        self.should_stop = should_stop
        self.workers = workers
        self.data = data
        self.images = NetworkImages(config, data)
        self.network = network.to(config.device)
        self.optimizer = _optimizer(config, self.network)
        self.state = self._restore()
        workers.share_statistics(self.network)
        self.resumed_seconds = self.state.seconds
        self.started, self.checkpointed = began, time.perf_counter()

    def finish(self) -> CellResult | None:
        """Trains to the end, or until asked to stop, which gives `None`."""
        with torch.random.fork_rng():  # the caller's random numbers stay where they are
            if self.config.pretraining is not None and not self.state.metrics_bytes:
                self._validate_start()
            while self.state.epoch < self.config.epochs:
                try:
                    if not self._train_epoch():
                        return None
                    self._validate()
                except _DivergedError as reason:
                    return CellResult(cell_id=self.config.cell_id, status="diverged", reason=str(reason))
        return summarise(self.config.cell_id, read_metrics(self.files.metrics), group_counts(self.network))

    def cost(self, peak_memory_bytes: int) -> Cost:
        """What the cell took so far, earlier starts included."""
        return Cost(
            seconds=self._seconds(),
            training_seconds=self.state.training_seconds,
            steps=self.state.total_steps,
            peak_memory_bytes=peak_memory_bytes,
        )

    def _train_epoch(self) -> bool:
        """Trains what is left of the current epoch; `False` when asked to stop."""
        self.network.train()
        order = image_order(self.config.seed, self.state.epoch, len(self.data.train_images))
        while self.state.step < self._steps_of_epoch():
            began = time.perf_counter()
            start = self.state.step * self.config.sgd_batch
            self._step(order[start : start + self.config.sgd_batch])
            self.state.training_seconds += time.perf_counter() - began
            if self.workers.any(self.should_stop()):
                self._save()
                return False
            if time.perf_counter() - self.checkpointed > self.files.checkpoint_seconds:
                self._save()
        return True

    def _step(self, chosen: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.config, self.state.total_steps, self.config.total_steps)
        self._seed_step()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._mixed_loss(chosen) if self.config.mixup else self._loss(self.workers.share(chosen))
        mean_loss = self.workers.mean(loss.item())
        if not math.isfinite(mean_loss):
            raise _DivergedError(
                f"the loss became {mean_loss} at step {self.state.step + 1} of epoch {self.state.epoch + 1}"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        self.workers.average_gradients(self.network)
        self.optimizer.step()
        self.state.loss_sum += mean_loss
        self.state.step += 1
        self.state.total_steps += 1

    def _steps_of_epoch(self) -> int:
        """Of the current one: the last may end early."""
        whole = self.config.steps_per_epoch
        return min(whole, self.config.total_steps - self.state.epoch * whole)

    def _loss(self, mine: Tensor) -> Tensor:
        """The mean over this worker's images."""
        return F.cross_entropy(self.network(self._images(mine)), self._labels(mine))

    def _mixed_loss(self, chosen: Tensor) -> Tensor:
        """The same where the step's images are blended with each other, whichever worker has them."""
        mixup = draw_mixup(
            self.config.mixup, len(chosen), seed=self.config.seed, epoch=self.state.epoch, step=self.state.step
        )
        mine, partners = (self.workers.share(part) for part in (chosen, chosen[mixup.partners]))
        needed, places = torch.unique(torch.cat([mine, partners]), return_inverse=True)  # many are both
        images = self._images(needed)
        own, others = places.to(images.device).chunk(2)
        scores = self.network(mixup.images(images[own], images[others]))
        return mixup.loss(scores, self._labels(mine), self._labels(partners))

    def _images(self, chosen: Tensor) -> Tensor:
        return self.images.training(chosen, self._augmented(chosen))

    def _labels(self, chosen: Tensor) -> Tensor:
        return self.data.train_labels[chosen].to(self.config.device)

    def _seed_step(self) -> None:
        """Dropout and its like draw the same at this step, wherever the run was stopped before; workers draw apart."""
        counters = (self.config.seed, self.state.total_steps, self.workers.rank)
        (state,) = numpy.random.SeedSequence(counters).generate_state(1, numpy.uint64)
        # not torch.manual_seed, which formats a stack trace for the accelerators that are not there
        torch.default_generator.manual_seed(int(state))
        if torch.device(self.config.device).type == "cuda":
            torch.cuda.manual_seed(int(state))

    def _augmented(self, chosen: Tensor) -> Tensor | None:
        """The chosen images' pixels under this epoch's augmentation; `None` where there is none."""
        if self.config.augment == "none":
            return None
        return augment(
            self.data.train_images[chosen],
            chosen.tolist(),
            kind=self.config.augment,
            image_size=self.config.image_size,
            seed=self.config.seed,
            epoch=self.state.epoch,
        )

    def _validate(self) -> None:
        validation, labels = self.images.validation()
        scores = evaluate(self.network, validation, labels)
        if self.workers.any(not math.isfinite(scores.loss)):
            raise _DivergedError(f"the validation loss was {scores.loss} after epoch {self.state.epoch + 1}")
        recomputed = None
        if has_batch_norm(self.network) and self.state.epoch + last_epochs(self.config.epochs) >= self.config.epochs:
            with recomputed_statistics(self.network, self.images.training(slice(RECOMPUTING_IMAGES))):
                recomputed = evaluate(self.network, validation, labels).error_percent
        line = EpochMetrics(
            epoch=self.state.epoch + 1,
            train_loss=self.state.loss_sum / self.state.step,
            validation_loss=scores.loss,
            error_percent=scores.error_percent,
            recomputed_error_percent=recomputed,
            feature_percentiles=scores.feature_percentiles,
        ).model_dump_json()
        self.state.epoch += 1
        self.state.step = 0
        self.state.loss_sum = 0.0
        if self.workers.rank == 0:
            self._log(line)

    def _validate_start(self) -> None:
        """What the network is worth before its first step. No number of it stops the run: training may mend it."""
        scores = evaluate(self.network, *self.images.validation())
        line = EpochMetrics(
            epoch=0,
            train_loss=None,
            validation_loss=scores.loss,
            error_percent=scores.error_percent,
            feature_percentiles=scores.feature_percentiles,
        ).model_dump_json()
        if self.workers.rank == 0:
            self._log(line)

    def _log(self, line: str) -> None:
        with open(self.files.metrics, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that counts on this line may follow
            self.state.metrics_bytes = file.tell()

    def _restore(self) -> TrainingState:
        """The state of the last good checkpoint, or a new one; lines of metrics that came after it are cut off."""
        logged = self.files.metrics.stat().st_size if self.files.metrics.exists() else 0
        state = load_checkpoint(self.files.checkpoint, self.network, self.optimizer, metrics_bytes=logged)
        counts = list(group_counts(self.network))
        if state.num_groups not in (None, counts):
            raise StudyError(
                f"{self.files.checkpoint} is of a network with {state.num_groups} groups, and this start chose {counts}"
                f": the calibration's last bits differ between machines. A run keeps its groups. Go on where it was "
                f"begun, or begin it anew: `batchfree study retry DIR --from-start`."
            )
        state.num_groups = counts
        self.workers.wait()  # all have read what the first now cuts
        if self.workers.rank == 0:
            if state.total_steps:
                print(f"going on from step {state.step} of epoch {state.epoch + 1}", flush=True)
            with open(self.files.metrics, "ab") as file:
                file.truncate(state.metrics_bytes)
        return state

    def _save(self) -> None:
        self.checkpointed = time.perf_counter()
        self.state.seconds = self._seconds()
        if self.workers.rank == 0:
            save_checkpoint(self.files.checkpoint, self.state, self.network, self.optimizer)

    def _seconds(self) -> float:
        return self.resumed_seconds + time.perf_counter() - self.started


class _DivergedError(Exception):
    """The loss is not finite any more."""


def image_order(seed: int, epoch: int, images: int) -> Tensor:
    """The order of the training images: a function of seed and epoch alone, hence the same for every arm."""
    # NumPy takes both numbers whole; torch's CPU generator would drop the upper half of one 64-bit seed.
    return torch.from_numpy(numpy.random.default_rng((seed, epoch)).permutation(images))


def _optimizer(config: CellConfig, network: nn.Module) -> torch.optim.Optimizer:
    parameters = network.parameters()
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
