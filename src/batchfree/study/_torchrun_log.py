"""Why several workers failed: torchrun ends with exit code 1 whatever happened, and says the rest in its log."""

from __future__ import annotations

import re

__all__ = ["first_failure"]

_SUMMARY = "Root Cause (first observed failure):"
#: torchrun's own lines, between those of the workers.
_TORCHRUN = re.compile(r"^[IWE]\d{4} .*torch/distributed/elastic/")


def first_failure(log: str) -> tuple[int, int, str] | None:
    """(worker from 1, its exit code or -n after signal n, what it printed last); `None` where `log` does not tell."""
    before, found, summary = log.rpartition(_SUMMARY)
    rank = re.search(r"^\s*rank\s*: (\d+)", summary, re.MULTILINE)
    code = re.search(r"^\s*exitcode\s*: (-?\d+)", summary, re.MULTILINE)
    if not found or rank is None or code is None:
        return None
    lines = before.splitlines()
    end = next((number for number, line in enumerate(lines) if _TORCHRUN.match(line)), len(lines))
    prefix = f"[rank{rank[1]}]: "  # torch's, before a worker's traceback
    said = [line.removeprefix(prefix) for line in lines[:end] if line.startswith(prefix)]
    if not said and int(code[1]) > 0:
        said = lines[:end]  # a refusal is one line without a prefix
    return int(rank[1]) + 1, int(code[1]), next((line.strip() for line in reversed(said) if line.strip()), "")
