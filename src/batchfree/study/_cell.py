"""One training run, from its configuration to its result on disk.

Everything that moves the numbers is a pure function of the configuration: the initial weights and the order of the
images come from the seed, the threads are pinned, and torch uses deterministic algorithms. So a run that was stopped
at any step goes on from its checkpoint to the same bits.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batchfree import __version__
from batchfree.errors import DataError, RecordError, StudyError
from batchfree.records import (
    CellConfig,
    CellResult,
    Cost,
    Environment,
    EpochMetrics,
    read_metrics,
    read_record,
    summarise,
    write_record,
)
from batchfree.study._arm import build_network, group_counts
from batchfree.study._checkpoint import TrainingState, load_checkpoint, save_checkpoint
from batchfree.study._data import ImageData, load_data

__all__ = ["only_writer", "run_cell"]

CHECKPOINT_SECONDS = 30.0
VALIDATION_BATCH = 100  # speed only: in evaluation no norm sees the batch, and maps of 100 images stay in cache


def run_cell(config: CellConfig, folder: Path, should_stop: Callable[[], bool] = lambda: False) -> CellResult | None:
    """Trains one network and writes `folder`; goes on where an earlier start of the same cell stopped.

    Args:
        should_stop: asked after every step; once true, a checkpoint is written and the run ends.

    Returns:
        The result, also when it was there already; `None` when it was asked to stop.

    Raises:
        StudyError: `folder` belongs to another cell, or another process is at work in it.
        DataError: the data set is missing, or is not the one the configuration was made for.
    """
    with only_writer(folder):
        _check_owner(folder, config)
        result_file = folder / "result.json"
        if result_file.exists():
            result = read_record(result_file, CellResult)
            if result.status != "failed":
                return result
        with _pinned(config.threads):
            data = _load_checked(config)
            network = build_network(config, data)
            write_record(folder / "config.json", config)
            write_record(folder / "environment.json", _environment(config))
            return _Run(config, folder, data, network, should_stop).finish()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds `folder`, made if it is not there, for one process.

    Raises:
        StudyError: another process holds it, or it cannot be written.
    """
    lock = filelock.FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StudyError(
            f"another process is at work in {folder}. One writes a folder at a time. Wait for it, or "
            f"pass another --out."
        ) from None
    except OSError as error:
        raise StudyError(
            f"{folder} cannot be written ({error.strerror or error}). A folder on a disk with room is needed. "
            f"Pass another --out, or mend this one."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """That many threads and deterministic algorithms; the caller's settings afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


class _Run:
    """A training run in memory, and its files."""

    def __init__(
        self, config: CellConfig, folder: Path, data: ImageData, network: nn.Module, should_stop: Callable[[], bool]
    ) -> None:
        self.config = config
        self.folder = folder
        self.should_stop = should_stop
        self.train_images, self.validation_images = data.standardised()
        self.train_labels = data.train_labels
        self.validation_labels = data.validation_labels
        self.network = network
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.steps_per_epoch = len(self.train_images) // config.sgd_batch  # the ragged last batch is left out
        self.checkpoint = folder / "checkpoint.safetensors"
        self.metrics = folder / "metrics.jsonl"
        self.state = self._restore()
        self.resumed_seconds = self.state.seconds
        self.started = self.checkpointed = time.perf_counter()

    def finish(self) -> CellResult | None:
        """Trains to the end, or until asked to stop."""
        while self.state.epoch < self.config.epochs:
            try:
                if not self._train_epoch():
                    return None
                self._validate()
            except _DivergedError as reason:
                return self._write_result(
                    CellResult(cell_id=self.config.cell_id, status="diverged", reason=str(reason))
                )
        epochs = read_metrics(self.metrics)
        return self._write_result(summarise(self.config.cell_id, epochs, group_counts(self.network)))

    def _train_epoch(self) -> bool:
        """Trains what is left of the current epoch; `False` when asked to stop."""
        self.network.train()
        order = _order(self.config.seed, self.state.epoch, len(self.train_images))
        while self.state.step < self.steps_per_epoch:
            start = self.state.step * self.config.sgd_batch
            self._step(order[start : start + self.config.sgd_batch])
            if self.should_stop():
                self._save()
                return False
            if time.perf_counter() - self.checkpointed > CHECKPOINT_SECONDS:
                self._save()
        return True

    def _step(self, chosen: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(self.config, self.state.total_steps, self.steps_per_epoch * self.config.epochs)
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.network(self.train_images[chosen]), self.train_labels[chosen])
        if not math.isfinite(loss.item()):
            raise _DivergedError(
                f"the loss became {loss.item()} at step {self.state.step + 1} of epoch {self.state.epoch + 1}"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.state.loss_sum += loss.item()
        self.state.step += 1
        self.state.total_steps += 1

    def _validate(self) -> None:
        loss, error_percent = _evaluate(self.network, self.validation_images, self.validation_labels)
        if not math.isfinite(loss):
            raise _DivergedError(f"the validation loss was {loss} after epoch {self.state.epoch + 1}")
        line = EpochMetrics(
            epoch=self.state.epoch + 1,
            train_loss=self.state.loss_sum / self.steps_per_epoch,
            validation_loss=loss,
            error_percent=error_percent,
        ).model_dump_json()
        with open(self.metrics, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that counts on this line may follow
            self.state.metrics_bytes = file.tell()
        self.state.epoch += 1
        self.state.step = 0
        self.state.loss_sum = 0.0

    def _restore(self) -> TrainingState:
        """The state of the last checkpoint, or a new one; lines of metrics that came after it are cut off."""
        state = TrainingState()
        if self.checkpoint.exists():
            logged = self.metrics.stat().st_size if self.metrics.exists() else 0
            try:
                state = load_checkpoint(self.checkpoint, self.network, self.optimizer, metrics_bytes=logged)
                print(f"going on from step {state.step} of epoch {state.epoch + 1}", flush=True)
            except RecordError as error:
                print(f"{error} Starting anew.", flush=True)
        with open(self.metrics, "ab") as file:
            file.truncate(state.metrics_bytes)
        return state

    def _save(self) -> None:
        self.checkpointed = time.perf_counter()
        self.state.seconds = self._seconds()
        save_checkpoint(self.checkpoint, self.state, self.network, self.optimizer)

    def _seconds(self) -> float:
        return self.resumed_seconds + time.perf_counter() - self.started

    def _write_result(self, result: CellResult) -> CellResult:
        cost = Cost(seconds=self._seconds(), steps=self.state.total_steps, peak_memory_bytes=_peak_memory_bytes())
        write_record(self.folder / "cost.json", cost)
        write_record(self.folder / "result.json", result)
        self.checkpoint.unlink(missing_ok=True)
        return result


class _DivergedError(Exception):
    """The loss is not finite any more."""


def _check_owner(folder: Path, config: CellConfig) -> None:
    path = folder / "config.json"
    if path.exists() and (owner := read_record(path, CellConfig)).cell_id != config.cell_id:
        raise StudyError(
            f"{folder} belongs to the cell {owner.cell_id}, and {config.cell_id} was asked for. A folder holds one "
            f"cell. Pass another --out."
        )


def _load_checked(config: CellConfig) -> ImageData:
    data = load_data(config.data, data_dir=config.data_dir, image_size=config.image_size).take(config.train_images)
    fingerprint = data.fingerprint()
    if fingerprint != config.data_fingerprint:
        raise DataError(
            f"the images of {config.data} have the fingerprint {fingerprint}; this cell was made for "
            f"{config.data_fingerprint}. A cell's data must not change. Start a new study for the new data."
        )
    return data


def _order(seed: int, epoch: int, images: int) -> Tensor:
    """The order of the training images: a function of seed and epoch alone, hence the same for every arm."""
    # NumPy takes both numbers whole; torch's CPU generator would drop the upper half of one 64-bit seed.
    return torch.from_numpy(numpy.random.default_rng((seed, epoch)).permutation(images))


def _learning_rate(config: CellConfig, step: int, total_steps: int) -> float:
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    # Wu & He 2018: a tenth after 30, 60 and 90 of 100 epochs.
    drops = sum(step >= round(share * total_steps) for share in (0.3, 0.6, 0.9))
    return config.learning_rate * 0.1**drops


@torch.no_grad()
def _evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and error in percent."""
    network.eval()
    loss = 0.0
    wrong = 0
    for start in range(0, len(images), VALIDATION_BATCH):
        scores = network(images[start : start + VALIDATION_BATCH])
        wanted = labels[start : start + VALIDATION_BATCH]
        loss += F.cross_entropy(scores, wanted, reduction="sum").item()
        wrong += int((scores.argmax(dim=1) != wanted).sum())
    return loss / len(images), 100 * wrong / len(images)


def _environment(config: CellConfig) -> Environment:
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=numpy.__version__,
        platform=platform.platform(),
        processor=_processor(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        threads=config.threads,
        batchfree=__version__,
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _peak_memory_bytes() -> int:
    if sys.platform == "win32":
        return 0
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
