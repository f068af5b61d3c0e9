from __future__ import annotations

import errno
import mmap
import os
import platform

import numpy
import pytest
import timm
import torch
import torchvision

from batchfree.errors import StudyError
from batchfree.records import CellConfig
from batchfree.study._environment import (
    MEMORY_VARIABLE,
    is_out_of_memory,
    limit_memory,
    present_environment,
    says_out_of_memory,
    size_bytes,
)
from tests.study.forks import in_fork


def test_the_environment_is_this_processs(cell: CellConfig) -> None:
    present = present_environment(cell)
    assert (present.python, present.torch, present.numpy) == (
        platform.python_version(),
        torch.__version__,
        numpy.__version__,
    )
    release = torchvision.__version__.partition("+")[0]  # a wheel's metadata may leave out what it was built for
    assert str(present.torchvision).partition("+")[0] == release
    assert present.timm == timm.__version__
    assert present.cuda is None  # the run is on the CPU, whatever torch was built for
    assert present.threads == cell.threads
    assert present.processor


@pytest.mark.parametrize(
    ("text", "size"),
    [("1024", 1024), ("8GiB", 8 * 2**30), ("500 MB", 500_000_000), ("1.5kib", 1536), (" 2 TB ", 2 * 10**12)],
)
def test_sizes_by_hand(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "many", "1.2.3MB", "5 XB", "GiB"])
def test_what_is_no_size_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(StudyError, match=r"Pass for instance 8GiB") as refusal:
        size_bytes(text)
    assert repr(text) in str(refusal.value)


def errors_at_the_limit() -> list[tuple[str, bool]]:
    """What Python, NumPy, torch and the system raise when memory runs out."""
    os.environ[MEMORY_VARIABLE] = str(1 << 20)  # less than is in use
    limit_memory()
    attempts = [
        lambda: bytearray(1 << 30),
        lambda: numpy.ones(1 << 28),
        lambda: torch.ones(1 << 28),
        lambda: mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    ]
    errors = []
    for attempt in attempts:
        try:
            attempt()
        except BaseException as error:
            errors.append((repr(error), is_out_of_memory(error)))
    return errors


def test_every_way_of_running_out_of_memory_is_known() -> None:
    errors = in_fork(errors_at_the_limit)
    assert len(errors) == 4
    assert all(is_known for _, is_known in errors), errors


def test_other_errors_are_not_out_of_memory() -> None:
    for error in (RuntimeError("shapes differ"), ValueError("out of memory"), OSError(errno.ENOSPC, "full")):
        assert not is_out_of_memory(error)
    # what C++ and Rust print when they end a process
    assert says_out_of_memory("terminate called after throwing an instance of 'std::bad_alloc'")
    assert says_out_of_memory("memory allocation of 609000 bytes failed")
    assert not says_out_of_memory("ended with exit code 1: ValueError: no such image")
