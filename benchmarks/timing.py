"""Timing several functions in turns, so that whatever else the machine does falls on all of them alike.

A turn is several calls, and its first is not counted: that one finds in the caches what another function left there, so
that its time would hang on how much memory the other touches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

__all__ = ["CALLS_PER_TURN", "Spread", "interleaved"]

CALLS_PER_TURN = 4


@dataclass(frozen=True)
class Spread:
    """Seconds per call: median and quartiles of `turns` turns, each the median of its counted calls."""

    median: float
    first_quartile: float
    third_quartile: float
    turns: int

    def as_row(self) -> dict[str, float]:
        return asdict(self)


def interleaved(
    functions: dict[str, Callable[[], object]], seconds: float, calls_per_turn: int = CALLS_PER_TURN
) -> dict[str, Spread]:
    """Each function's time per call, in turns for about `seconds` in all (five turns each at least).

    With one call per turn, every call is counted.
    """
    for function in functions.values():  # warm up: memory, threads, the instruction cache
        function()
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    uncounted = 0 if calls_per_turn == 1 else 1
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, function in functions.items():
            calls = [_time(function) for _ in range(calls_per_turn)]
            times[name].append(statistics.median(calls[uncounted:]))
    return {name: _spread(turns) for name, turns in times.items()}


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _spread(values: list[float]) -> Spread:
    first, median, third = statistics.quantiles(values, n=4)
    return Spread(median, first, third, len(values))
