"""What a study leaves: its numbers, and processes that it should not leave."""

from __future__ import annotations

from pathlib import Path

__all__ = ["cell_numbers", "cell_processes"]


def cell_numbers(out: Path) -> dict[str, tuple[bytes, bytes]]:
    """What the cells of the study in `out` found, byte for byte."""
    return {
        folder.name: ((folder / "result.json").read_bytes(), (folder / "metrics.jsonl").read_bytes())
        for folder in sorted((out / "cells").iterdir())
    }


def cell_processes(out: Path) -> list[int]:
    """Live processes that run a cell of the study in `out`; those of torchrun in the order of their ranks."""
    found: list[tuple[int, int]] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if b"cell" in words and b"torch.distributed.run" not in words and any(w.startswith(bytes(out)) for w in words):
            ranks = [int(variable.partition(b"=")[2]) for variable in variables if variable.startswith(b"RANK=")]
            found.append(((*ranks, 0)[0], int(folder.name)))
    return [pid for _, pid in sorted(found)]
