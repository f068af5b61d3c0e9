"""Functions that run a step at a time: a coroutine for code that cannot yield, such as a network's forward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

__all__ = ["Strand"]

Stop = TypeVar("Stop")
_here = threading.local()


class Strand(Generic[Stop]):
    """`work` in a thread of its own that runs only inside `advance`, so that never two of them run at once.

    Whatever `work` calls may call `Strand.stop(value)`: `advance` then returns that value, and the next `advance` goes
    on from there. Gradients are off in the thread; it inherits the caller's CUDA stream, and not autocast.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._go = threading.Semaphore(0)
        self._halted = threading.Semaphore(0)
        self._stop: Stop | None = None
        self._error: BaseException | None = None
        self._is_cancelled = False
        # A thread starts on the default stream, beside what the caller does with the maps on another.
        self._stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._thread: threading.Thread | None = None
        #: What `work` returned, once `is_done`.
        self.result: object = None
        self.is_done = False

    def advance(self) -> Stop | None:
        """Runs `work` to its next stop and returns that stop's value; `None` at the end.

        Raises:
            Exception: whatever `work` raised.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._go.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error
        stop, self._stop = self._stop, None
        return stop

    def cancel(self) -> None:
        """Ends a `work` that is not done at the stop where it waits."""
        self._is_cancelled = True
        if self._thread is not None:
            self._go.release()
            self._thread.join()

    @staticmethod
    def stop(value: object) -> None:
        """Waits here for the next `advance`; returns at once outside of a strand."""
        strand: Strand[object] | None = getattr(_here, "strand", None)
        if strand is not None:
            if strand._is_cancelled:  # a `finally` on the way out came to another stop
                raise _Cancelled
            strand._stop = value
            strand._halted.release()
            strand._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._is_cancelled:
            raise _Cancelled

    def _run(self) -> None:
        _here.strand = self
        try:
            self._wait()
            with torch.no_grad(), torch.cuda.stream(self._stream):
                self.result = self._work()
        except _Cancelled:
            pass
        except BaseException as error:  # raised again in the caller's thread
            self._error = error
        self.is_done = True
        self._halted.release()


class _Cancelled(BaseException):
    """Unwinds the work of a cancelled strand; no `except Exception` on the way holds it up."""
