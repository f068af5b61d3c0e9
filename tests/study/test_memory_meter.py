from __future__ import annotations

from batchfree.study._memory_meter import MemoryMeter

ALLOCATED = 96 << 20


def test_a_meter_counts_what_came_after_it_and_went_again() -> None:
    earlier = bytearray(ALLOCATED)
    earlier[::4096] = b"x" * len(earlier[::4096])  # resident, and freed before the meter starts
    del earlier
    meter = MemoryMeter("cpu")
    assert meter.peak_bytes() < ALLOCATED // 4
    used = bytearray(ALLOCATED)
    used[::4096] = b"x" * len(used[::4096])
    del used
    assert ALLOCATED * 0.95 < meter.peak_bytes() < ALLOCATED * 1.25


def test_a_peak_is_forgotten_and_what_is_held_still_counts() -> None:
    meter = MemoryMeter("cpu")
    held, passing = bytearray(ALLOCATED), bytearray(ALLOCATED)
    for part in (held, passing):
        part[::4096] = b"x" * len(part[::4096])
    del part, passing
    assert meter.peak_bytes() > ALLOCATED * 1.9
    meter.forget_peak()
    assert ALLOCATED * 0.95 < meter.peak_bytes() < ALLOCATED * 1.25
    del held
