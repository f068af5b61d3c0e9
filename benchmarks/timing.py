"""Timing several functions in turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

__all__ = ["Spread", "interleaved"]


@dataclass(frozen=True)
class Spread:
    """Seconds per call: median and quartiles of `rounds` calls."""

    median: float
    first_quartile: float
    third_quartile: float
    rounds: int

    def as_row(self) -> dict[str, float]:
        return asdict(self)


def interleaved(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, Spread]:
    """Each function's time per call, called in turns for about `seconds` in all (five rounds at least)."""
    for function in functions.values():  # warm up: memory, threads, the instruction cache
        function()
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: _spread(values) for name, values in times.items()}


def _spread(values: list[float]) -> Spread:
    first, median, third = statistics.quantiles(values, n=4)
    return Spread(median, first, third, len(values))
