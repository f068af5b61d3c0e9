"""One training run, from its configuration to its result on disk.

Everything that moves the numbers is a pure function of the configuration: the initial weights and the order of the
images come from the seed, the threads are pinned, and torch uses deterministic algorithms. So a run that was stopped
at any step goes on from its checkpoint to the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from batchfree.errors import DataError, StudyError
from batchfree.records import CellConfig, CellResult, Cost, Environment, read_record, write_record
from batchfree.study._arm import build_network
from batchfree.study._checkpoint import has_checkpoint, remove_checkpoints
from batchfree.study._data import ImageData, load_data
from batchfree.study._environment import is_out_of_memory, present_environment
from batchfree.study._folder import only_writer, says_what_to_do_when_full
from batchfree.study._memory_meter import MemoryMeter
from batchfree.study._trained_network import TRAINED, State, load_trained, save_trained
from batchfree.study._training import Training, TrainingFiles
from batchfree.study._weights_file import weights_fingerprint
from batchfree.study._workers import Workers

__all__ = ["CHECKPOINT", "run_cell"]

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 30.0


def run_cell(
    config: CellConfig,
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    lock_seconds: float = 0.0,
) -> CellResult | None:
    """Trains one network and writes `folder`; goes on where an earlier start of the same cell stopped.

    Args:
        should_stop: asked after every step; once true, a checkpoint is written and the run ends.
        checkpoint_seconds: between two checkpoints; how much work a kill may cost.
        lock_seconds: how long another process may still be at work in `folder`. One whose study is gone, or whose node
            is lost, stops by itself, but not at once.

    Returns:
        The result, also when it was there already; `None` when it was asked to stop.

    Raises:
        StudyError: `folder` belongs to another cell or was begun with another torch, or another process is at work in
            it; or the disk is full: what was written before is whole, and the next start goes on from it.
        DataError: the data set is missing, or is not the one the configuration was made for.
    """
    with (
        Workers(config.workers, config.device) as workers,
        # The first worker alone writes. The others read only while it holds the folder.
        only_writer(folder, lock_seconds) if workers.rank == 0 else nullcontext(),
    ):
        workers.wait()
        return _run(config, folder, workers, should_stop, checkpoint_seconds)


def _run(
    config: CellConfig,
    folder: Path,
    workers: Workers,
    should_stop: Callable[[], bool],
    checkpoint_seconds: float,
) -> CellResult | None:
    """`run_cell` in a folder that is ours."""
    _check_owner(folder, config)
    result_file = folder / "result.json"
    if result_file.exists():
        earlier = read_record(result_file, CellResult)
        if earlier.is_final:
            if workers.rank == 0:
                remove_checkpoints(folder / CHECKPOINT)  # of a run that was killed between its result and this
            return earlier
    with _pinned(config.threads):
        environment = _checked_environment(folder, config)
        _check_weights(config)
        data = _load_checked(config)
        trained = _load_trained(config, folder)
        is_writer = workers.rank == 0
        with says_what_to_do_when_full(folder):
            if is_writer:
                write_record(folder / "config.json", config)
                write_record(folder / "environment.json", environment)
            result, cost = _train(config, folder, data, trained, workers, should_stop, checkpoint_seconds)
            if result is not None and is_writer:
                write_record(folder / "cost.json", cost)
                write_record(result_file, result)
                if result.is_final:
                    remove_checkpoints(folder / CHECKPOINT)
        if result is not None and result.status == "out of memory" and workers.count > 1:
            raise StudyError(  # and ends the others, which wait for this one
                f"worker {workers.rank + 1} of {workers.count} is out of memory ({result.reason}). Each needs room for "
                f"its part of the SGD batch. Pass a smaller sgd_batch, or more workers."
            )
        return result


def _train(
    config: CellConfig,
    folder: Path,
    data: ImageData,
    trained: State | None,
    workers: Workers,
    should_stop: Callable[[], bool],
    checkpoint_seconds: float,
) -> tuple[CellResult | None, Cost]:
    files = TrainingFiles(folder / "metrics.jsonl", folder / CHECKPOINT, checkpoint_seconds)
    began, meter = time.perf_counter(), MemoryMeter(config.device)
    try:
        network = build_network(config, data, trained)
        meter.forget_peak()  # that of calibration and distillation is not the training's
        training = Training(config, files, data, network, workers, should_stop, began)
        result, cost = training.finish(), training.cost(meter.peak_bytes())
        if config.keeps_weights and result is not None and result.status == "done" and workers.rank == 0:
            save_trained(folder / TRAINED, training.network)
        return result, cost
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no memory is left'}"
        cost = Cost(seconds=0, training_seconds=0, steps=0, peak_memory_bytes=meter.peak_bytes())
        return CellResult(cell_id=config.cell_id, status="out of memory", reason=reason), cost


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


def _check_owner(folder: Path, config: CellConfig) -> None:
    path = folder / "config.json"
    if path.exists() and (owner := read_record(path, CellConfig)).cell_id != config.cell_id:
        raise StudyError(
            f"{folder} belongs to the cell {owner.cell_id}, and {config.cell_id} was asked for. A folder holds one "
            f"cell. Pass another --out."
        )


def _checked_environment(folder: Path, config: CellConfig) -> Environment:
    """This process's environment, in which a checkpoint that is there may be gone on from."""
    present = present_environment(config)
    path = folder / "environment.json"
    if path.exists() and has_checkpoint(folder / CHECKPOINT):
        begun = read_record(path, Environment)
        if begun.torch != present.torch:
            raise StudyError(
                f"{folder} was begun with torch {begun.torch}, and this is torch {present.torch}, whose last bits "
                f"differ. A run is made with one of them. Install torch {begun.torch}, or begin it anew: "
                f"`batchfree study retry DIR --from-start`."
            )
    return present


def _check_weights(config: CellConfig) -> None:
    if config.weights_fingerprint and weights_fingerprint(config.weights) != config.weights_fingerprint:
        raise StudyError(
            f"the file {config.weights} holds other weights than those that this cell was made for. A cell's initial "
            f"weights must not change. Put the old file back, or start a new study."
        )


def _load_trained(config: CellConfig, folder: Path) -> State | None:
    """What the cell starts from: in the folder of its pre-training, which lies beside its own."""
    if config.pretraining is None:
        return None
    path = folder.resolve().parent / config.pretraining / TRAINED
    if not path.exists():
        raise StudyError(
            f"{path} is not there. This cell starts from the network that the cell {config.pretraining} leaves "
            f"there. Run the study again, which makes it; or run that cell first, with --out {path.parent}, and delete "
            f"a result.json in there before."
        )
    return load_trained(path)


def _load_checked(config: CellConfig) -> ImageData:
    data = load_data(
        config.data,
        data_dir=config.data_dir,
        image_size=config.image_size,
        stored_size=config.stored_size,
        split=config.split,
    )
    data = data.take(config.train_images, config.validation_images, half=config.half).rotated(config.rotation)
    fingerprint = data.fingerprint()
    if fingerprint != config.data_fingerprint:
        raise DataError(
            f"the images of {config.data} have the fingerprint {fingerprint}; this cell was made for "
            f"{config.data_fingerprint}. A cell's data must not change. Start a new study for the new data."
        )
    return data
