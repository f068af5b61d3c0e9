"""Studies of seconds, and what they found."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from batchfree.records import CellConfig
from batchfree.study import Study, load_study


def quick_study(**overrides: object) -> Study:
    """Three epochs on 160 digits: Batch Norm at norm batch 32 and 2, and Group Norm."""
    quick = {"norm": ["bn", "gn"], "norm_batch": [32, 2], "train_images": 160, "epochs": 3, "seeds": 1}
    return load_study("norm-batch", overrides={**quick, **overrides})


def quick_fine_tuning(**overrides: object) -> Study:
    """One epoch on 160 turned digits in every arm at norm batch 2, after two on 320 upright ones."""
    quick = {"train_images": 160, "epochs": 1, "seeds": 1, "norm_batch": [2]}
    before = {"pretraining.train_images": 320, "pretraining.epochs": 2}
    return load_study("fine-tune", overrides={**quick, **before, **overrides})


def cells_of(study: Study) -> tuple[CellConfig, ...]:
    return study.cells(study.load())


def stop_after(steps: int) -> Callable[[], bool]:
    """For `run_cell`: true from that step on."""
    calls = itertools.count(1)
    return lambda: next(calls) >= steps


def numbers(out: Path) -> dict[str, tuple[bytes, bytes]]:
    """What each finished cell found, byte for byte."""
    return {
        path.parent.name: (path.read_bytes(), (path.parent / "metrics.jsonl").read_bytes())
        for path in sorted((out / "cells").glob("*/result.json"))
    }
