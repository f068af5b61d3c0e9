from __future__ import annotations

from mmap import PAGESIZE, mmap

from batchfree.study._memory_meter import MemoryMeter

ALLOCATED = 96 << 20


def resident_pages() -> mmap:
    """Straight from the system: ``malloc`` may hand out a hole that earlier tests left resident, which adds nothing."""
    pages = mmap(-1, ALLOCATED)
    for start in range(0, ALLOCATED, PAGESIZE):
        pages[start] = 1
    return pages


def test_a_meter_counts_what_came_after_it_and_went_again() -> None:
    resident_pages().close()  # gone before the meter starts
    meter = MemoryMeter("cpu")
    assert meter.peak_bytes() < ALLOCATED // 4
    resident_pages().close()
    assert ALLOCATED * 0.95 < meter.peak_bytes() < ALLOCATED * 1.25


def test_a_peak_is_forgotten_and_what_is_held_still_counts() -> None:
    meter = MemoryMeter("cpu")
    held, passing = resident_pages(), resident_pages()
    passing.close()
    assert meter.peak_bytes() > ALLOCATED * 1.9
    meter.forget_peak()
    assert ALLOCATED * 0.95 < meter.peak_bytes() < ALLOCATED * 1.25
    held.close()
