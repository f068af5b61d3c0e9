"""How commands end: exit statuses and signals."""

from __future__ import annotations

import signal

__all__ = ["FAILED", "REFUSED", "SIGNALLED", "STOPPING_SIGNALS", "raise_on_signals"]

#: Exit statuses: 0 all cells finished, 1 some failed, 2 the input is refused, 128 + n ended by signal n.
FAILED, REFUSED, SIGNALLED = 1, 2, 128

STOPPING_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def raise_on_signals() -> list[int]:
    """SIGTERM and a closed terminal end a study as Ctrl-C does: children first. The list gets the signal's number."""
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    for number in STOPPING_SIGNALS:
        signal.signal(number, stop)
    return received
