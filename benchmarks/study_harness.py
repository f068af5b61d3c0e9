"""`python -m benchmarks.study_harness --json FILE`: what the studies' harness costs, and what a second job brings.

Overhead: one cell through `run_cell`, and the same training as a bare PyTorch loop, alternating in one process. The
gate is that both compute the same losses to the last bit. Throughput: a grid of equal cells with one job and with two.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from batchfree import __version__
from batchfree.records import CellConfig, read_cell
from batchfree.study import Study, load_study, run_cell, run_study
from batchfree.study._arm import NetworkImages, build_network
from batchfree.study._data import ImageData
from batchfree.study._training import image_order

PAIRS = 10
EPOCHS = 30

#: (training loss, validation loss) of each epoch.
Losses: TypeAlias = "Sequence[tuple[float | None, float]]"


def main() -> int:
    """0 where the bare loop computed the same losses, 1 where it did not and nothing was timed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_harness", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the figures are written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    overhead = _overhead()
    if overhead is None:
        print("The gate is red: the bare loop computes other losses; nothing is timed.", file=sys.stderr)
        return 1
    figures = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "batchfree": __version__,
        "step_time_ratio": overhead,
        "two_jobs_throughput_ratio": _throughput(),
    }
    given.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(json.dumps(figures, indent=1))
    return 0


def _study(**overrides: Any) -> Study:
    settings = {"model": "resnet20", "norm": ["gn"], "train_images": 640, "epochs": 2, "seeds": 1, **overrides}
    return load_study("norms", overrides=settings)


def _overhead() -> dict[str, float] | None:
    """Seconds per step through the harness over seconds per step of the bare loop: median and quartiles."""
    study = _study(epochs=EPOCHS)
    loaded = study.load()
    (cell,) = study.cells(loaded)
    ((data, _),) = loaded.values()
    ratios = []
    for pair in range(PAIRS + 1):  # the first warms up
        runs = [partial(_harness, cell), partial(_bare_loop, cell, data)]
        if pair % 2:  # what slows down or speeds up meanwhile falls on both alike
            (bare, expected), (through_harness, losses) = runs[1](), runs[0]()
        else:
            (through_harness, losses), (bare, expected) = runs[0](), runs[1]()
        if losses != expected:
            return None
        ratios.append(through_harness / bare)
        print(".", end="", flush=True, file=sys.stderr)
    low, middle, high = statistics.quantiles(ratios[1:], n=4)
    return {"median": middle, "lower_quartile": low, "upper_quartile": high, "pairs": PAIRS}


def _harness(cell: CellConfig) -> tuple[float, Losses]:
    """Seconds per step, start and validation included, and the losses of each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run_cell(cell, Path(folder))
        record = read_cell(Path(folder))
    assert record.cost is not None
    losses = [(epoch.train_loss, epoch.validation_loss) for epoch in record.metrics]
    return record.cost.seconds / record.cost.steps, losses


def _bare_loop(cell: CellConfig, data: ImageData) -> tuple[float, Losses]:
    """The same."""
    torch.use_deterministic_algorithms(True)
    began = time.perf_counter()
    network = build_network(cell, data)
    images = NetworkImages(cell, data)
    validation, labels = images.validation()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=cell.learning_rate, momentum=cell.momentum, weight_decay=cell.weight_decay
    )
    steps = len(data.train_images) // cell.sgd_batch
    losses = []
    for epoch in range(cell.epochs):
        network.train()
        order = image_order(cell.seed, epoch, len(data.train_images))
        total = 0.0
        for step in range(steps):
            chosen = order[step * cell.sgd_batch : (step + 1) * cell.sgd_batch]
            progress = (epoch * steps + step) / (steps * cell.epochs)
            optimizer.param_groups[0]["lr"] = cell.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(network(images.training(chosen)), data.train_labels[chosen])
            loss.backward()
            optimizer.step()
            total += loss.item()
        network.eval()
        validation_loss = 0.0
        with torch.no_grad():
            for part, wanted in zip(validation.split(100), labels.split(100), strict=True):
                validation_loss += F.cross_entropy(network(part), wanted, reduction="sum").item()
        losses.append((total / steps, validation_loss / len(validation)))
    seconds = time.perf_counter() - began
    torch.use_deterministic_algorithms(False)
    return seconds / (steps * cell.epochs), losses


def _throughput() -> float:
    """Time of a grid of eight equal cells with one job over its time with two."""
    seconds = []
    for jobs in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            run_study(_study(seeds=8, epochs=4), Path(folder) / "out", jobs=jobs)
            seconds.append(time.perf_counter() - began)
    return seconds[0] / seconds[1]


if __name__ == "__main__":
    sys.exit(main())
